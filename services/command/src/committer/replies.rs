use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use souk_event_sourcing::{Epoch, LogId, LogPosition, Position, StreamId};
use souk_event_store::StoredReply;
use souk_proto::log::v1::{self as wire, stored_reply::Outcome};
use tonic::Code;

use super::{Answer, CommandError, DamagedHistory, Refusal, RefusalClass, Request};

/// The ledger's encoding of an accepted command.
pub(super) fn accepted(answer: &Answer) -> Bytes {
    let accepted = wire::Accepted { response: answer.response.clone(), epoch: answer.at.epoch.0, position: answer.at.position.0 };
    wire::StoredReply { outcome: Some(Outcome::Accepted(accepted)) }.encode_to_vec().into()
}

/// The ledger's encoding of a refusal decided on state; `None` for what must not be remembered (law 10).
pub(super) fn remembered(error: &CommandError) -> Option<Bytes> {
    let CommandError::Refused(refusal) = error else { return None };
    let code = match refusal.class {
        RefusalClass::NotFound => Code::NotFound,
        RefusalClass::AlreadyExists => Code::AlreadyExists,
        RefusalClass::Rule => Code::FailedPrecondition,
        RefusalClass::Conflict => return None,
    };
    let refused = wire::Refused {
        code: code as i32,
        reason: refusal.reason.clone(),
        message: refusal.message.clone(),
        metadata: refusal.metadata.clone().into_iter().collect(),
    };
    Some(wire::StoredReply { outcome: Some(Outcome::Refused(refused)) }.encode_to_vec().into())
}

/// What an earlier command with this request's id was answered.
pub(super) fn stored(log: LogId, request: &Request, stored: &StoredReply) -> Result<Answer, CommandError> {
    if stored.fingerprint != request.fingerprint.0 {
        return Err(CommandError::RequestIdReused(request.id));
    }
    match wire::StoredReply::decode(stored.reply.clone()).map(|reply| reply.outcome) {
        Ok(Some(Outcome::Accepted(accepted))) => {
            let at = LogPosition { log, epoch: Epoch(accepted.epoch), position: Position(accepted.position) };
            Ok(Answer { response: accepted.response, at })
        }
        Ok(Some(Outcome::Refused(refused))) => Err(CommandError::Refused(Refusal {
            class: match Code::from(refused.code) {
                Code::NotFound => RefusalClass::NotFound,
                Code::AlreadyExists => RefusalClass::AlreadyExists,
                _ => RefusalClass::Rule,
            },
            reason: refused.reason,
            message: refused.message,
            metadata: refused.metadata.into_iter().collect::<BTreeMap<_, _>>(),
        })),
        _ => Err(CommandError::Damaged(DamagedHistory {
            stream: StreamId::new("ledger", &request.id.to_string()),
            reason: "unreadable reply".into(),
        })),
    }
}
