//! Reads of one entity and of several, alike for all contexts.

use bytes::Buf;
use souk_event_sourcing::{LogId, LogPosition, UnixMillis};
use souk_proto::common::v1::AsOf;
use souk_runtime::{Deadline, Failure};
use souk_views::read::{InvalidId, Routing};
use tonic::{
    Request,
    codegen::http::{self, HeaderMap},
};

use crate::{
    cache::{Answer, ReadError, RowRef, View},
    check::Check,
    core::{Core, Freshness},
    reply::{self, BatchReply, EntityReply},
};

/// Most ids of one batch.
const MAX_BATCH: usize = 100;

/// What a request about one entity brings beside its message.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    headers: &'a HeaderMap,
    deadline: Deadline,
}

impl<'a, T> From<&'a Request<T>> for Asked<'a> {
    fn from(request: &'a Request<T>) -> Self {
        Self { headers: request.metadata().as_ref(), deadline: Deadline::of(request) }
    }
}

impl<'a, T> From<&'a http::Request<T>> for Asked<'a> {
    fn from(request: &'a http::Request<T>) -> Self {
        Self { headers: request.headers(), deadline: Deadline::among(request.extensions()) }
    }
}

impl View {
    /// The request's field with the entity's id.
    pub(super) fn id_field(self) -> &'static str {
        match self {
            Self::Product | Self::Availability => "product_id",
            Self::Cart => "customer_id",
            Self::Order => "order_id",
        }
    }

    /// The log of the entity with this id.
    pub(super) fn log(self, routing: &Routing, id: &str) -> Result<LogId, InvalidId> {
        match self {
            Self::Product | Self::Availability => routing.product(id),
            Self::Cart => routing.customer(id),
            Self::Order => routing.order(id),
        }
    }

    pub(super) fn not_found(self, id: &str) -> Failure {
        let (reason, what) = match self {
            Self::Product => ("PRODUCT_NOT_FOUND", "product"),
            Self::Availability => ("STOCK_NOT_FOUND", "stock of product"),
            Self::Cart => ("CART_NOT_FOUND", "cart of customer"),
            Self::Order => ("ORDER_NOT_FOUND", "order"),
        };
        Failure::not_found(reason, format!("there is no {what} '{id}'"))
    }
}

impl Core {
    /// The reply to a request about one entity, encoded.
    pub async fn entity(&self, view: View, id: &str, token: &str, asked: Asked<'_>) -> Result<EntityReply, Failure> {
        let mut check = Check::default();
        let log = check.field(view.id_field(), view.log(&self.routing, id));
        let token = check.token(&self.token_key, token, asked.headers);
        check.finish()?;
        let key = RowRef { view, log: log.expect("checked"), key: id };
        let answer = match self.reader.read(key, &token, self.patience(asked.deadline)).await {
            // An id that names a region unknown here.
            Err(ReadError::UnknownLog(_)) => return Err(view.not_found(id)),
            answer => answer?,
        };
        if answer.entry.row.is_none() {
            return Err(view.not_found(id));
        }
        let say = || reply::as_of_field(&self.as_of(freshness(key.log, &answer)));
        let as_of = match answer.entry.parked {
            None => self.reader.log(key.log)?.stamped(answer.contained, answer.heard, say),
            Some(_) => say(),
        };
        Ok(EntityReply { entry: answer.entry, as_of })
    }

    /// The reply to a request about several entities of one view, encoded.
    pub async fn entities(&self, view: View, ids: &[String], token: &str, asked: Asked<'_>) -> Result<BatchReply, Failure> {
        let mut check = Check::default();
        let field = format!("{}s", view.id_field());
        check.require((1..=MAX_BATCH).contains(&ids.len()), field.as_str(), &format!("want 1–{MAX_BATCH} ids"));
        let logs: Vec<_> = (ids.iter().take(MAX_BATCH).enumerate())
            .filter_map(|(index, id)| check.field(format!("{field}[{index}]"), view.log(&self.routing, id)))
            .collect();
        let token = check.token(&self.token_key, token, asked.headers);
        check.finish()?;
        let keys: Vec<_> = ids.iter().zip(logs).map(|(id, log)| RowRef { view, log, key: id }).collect();
        let answers = self.reader.read_many(&keys, &token, self.patience(asked.deadline)).await?;
        self.batch(&keys, &answers)
    }

    fn batch(&self, keys: &[RowRef<'_>], answers: &[Answer]) -> Result<BatchReply, Failure> {
        let mut all: Option<Freshness> = None;
        let (mut found, mut missing) = (Vec::with_capacity(keys.len()), Vec::new());
        for (key, answer) in keys.iter().zip(answers) {
            let one = freshness(key.log, answer);
            match &mut all {
                None => all = Some(one),
                Some(all) => all.join(one),
            }
            match &answer.entry.row {
                Some(row) => found.push(row.field.clone()),
                None => missing.push(key.key.to_owned()),
            }
        }
        let all = all.expect("a batch has at least one id");
        let reply = BatchReply::new(found, &missing, &self.as_of(all));
        let limit = self.settings.grpc.max_message_bytes;
        if reply.len() > limit {
            let failure = Failure::invalid("REPLY_TOO_LARGE", "the reply would exceed the message limit; ask for fewer at once");
            return Err(failure.with("bytes", reply.len()).with("limit", limit));
        }
        Ok(reply)
    }

    pub fn as_of(&self, freshness: Freshness) -> AsOf {
        reply::as_of(&self.token_key, freshness)
    }
}

/// How fresh the answer about one entity is.
pub(super) fn freshness(log: LogId, answer: &Answer) -> Freshness {
    let position = LogPosition { log, epoch: answer.contained.epoch, position: answer.contained.position };
    Freshness { positions: vec![position], heard: answer.heard, stale_since: answer.entry.parked.map(|parked| parked.since) }
}

impl Freshness {
    /// Of both answers together: of a log read twice, what both contain.
    fn join(&mut self, other: Self) {
        for position in other.positions {
            match self.positions.iter_mut().find(|known| known.log == position.log) {
                Some(known) if (position.epoch, position.position) < (known.epoch, known.position) => *known = position,
                Some(_) => {}
                None => self.positions.push(position),
            }
        }
        self.heard = self.heard.min(other.heard);
        self.stale_since = earlier(self.stale_since, other.stale_since);
    }
}

/// The earlier of two times, if there is any.
pub(super) fn earlier(left: Option<UnixMillis>, right: Option<UnixMillis>) -> Option<UnixMillis> {
    left.into_iter().chain(right).min()
}

/// Decodes what a projection has stored.
///
/// # Errors
/// INTERNAL: the view is damaged, which audit will tell more about.
pub(super) fn stored<M: prost::Message + Default>(body: impl Buf) -> Result<M, Failure> {
    M::decode(body).map_err(|error| {
        tracing::error!(%error, "a stored view row cannot be decoded");
        Failure::internal("STORE_DAMAGED", "the read store cannot be read")
    })
}
