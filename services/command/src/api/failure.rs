use std::time::Duration;

use souk_runtime::Failure;
use tonic::Code;

use crate::committer::{CommandError, RETRY_AFTER, Refusal, RefusalClass};

/// Links between regions heal in seconds at best.
const RETRY_HOME: Duration = Duration::from_secs(1);

/// What a caller is told of a command that was not carried out: the one table of statuses of the write side.
pub(super) fn failure(error: CommandError) -> Failure {
    match error {
        CommandError::Refused(refusal) => refused(refusal),
        CommandError::RequestIdReused(_) => {
            Failure::invalid("REQUEST_ID_REUSED", "request_id: was used before for another command; send under a new id")
                .field("request_id", "was used before for another command")
        }
        CommandError::StaleEtag { current, .. } => {
            Failure::aborted("STALE_ETAG", "the entity has changed since; read it again").with("current_version", current)
        }
        CommandError::Conflict { attempts } => Failure::aborted("CONFLICT", "others were faster; try again").with("attempts", attempts),
        CommandError::NotOwner(log) => {
            Failure::unavailable("NOT_OWNER", "this process does not own the partition", RETRY_AFTER).with("partition", log.partition)
        }
        CommandError::UnknownRegion(error) => Failure::invalid("UNKNOWN_REGION", error.to_string()),
        CommandError::HomeAway(region) => {
            Failure::unavailable("HOME_REGION_AWAY", "the entity's home region is not reached; nothing was written", RETRY_HOME)
                .with("region", region)
        }
        CommandError::HomeSilent(region) => {
            let message = "the entity's home region has not answered; repeat under the same request id";
            Failure::unavailable("HOME_REGION_SILENT", message, RETRY_HOME).with("region", region)
        }
        CommandError::Overloaded => Failure::exhausted("OVERLOADED", "too many commands are waiting", RETRY_AFTER),
        CommandError::TooLong(error) => error.into(),
        CommandError::Unavailable => {
            Failure::unavailable("STORE_UNAVAILABLE", "the write store does not answer; repeat under the same request id", RETRY_AFTER)
        }
        CommandError::StoreFull => Failure::unavailable(
            "STORE_FULL",
            "the write store's disk is full, this attempt wrote nothing; repeat under the same request id",
            RETRY_AFTER,
        ),
        CommandError::Unstorable(sqlstate) => {
            Failure::invalid("UNSTORABLE", "the command's data cannot be stored").with("sqlstate", sqlstate)
        }
        CommandError::DamagedReply => Failure::internal("DAMAGED_REPLY", "the remembered reply cannot be read"),
        CommandError::Damaged(_) => Failure::internal("DAMAGED_HISTORY", "a stored history cannot be read"),
    }
}

fn refused(refusal: Refusal) -> Failure {
    let code = match refusal.class {
        RefusalClass::NotFound => Code::NotFound,
        RefusalClass::AlreadyExists => Code::AlreadyExists,
        RefusalClass::Rule => Code::FailedPrecondition,
        RefusalClass::Conflict => Code::Aborted,
    };
    let mut failure = Failure::new(code, refusal.reason.clone(), refusal.message.clone());
    failure.metadata.extend(refusal.metadata);
    if refusal.class == RefusalClass::Rule {
        failure = failure.precondition(refusal.reason, "", refusal.message);
    }
    failure
}
