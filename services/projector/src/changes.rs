use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics::counter;
use souk_bus::Feed;
use souk_event_sourcing::{LogId, Position, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, ChangedRow};
use souk_read_store::{Checkpoint, Row};
use souk_runtime::telemetry;
use souk_views::{changed_body, first_event};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{Instrument, Span, info_span};

/// Larger rows are named without their body: caches read them again.
const MAX_ROW_BYTES: usize = 64 * 1024;
/// Names and bodies in one message, as long as the names leave room for any; it stays below the bus's limit.
const MAX_ROWS_BYTES: usize = 512 * 1024;
/// Around the key of a row.
const NAME_BYTES: usize = 32;
/// So long does whoever wrote wait to see it, unless `query.token_wait` says otherwise.
const AWAITED_FOR: Duration = Duration::from_secs(5);
const MAX_TRACEPARENTS: usize = 16;
/// Messages waiting to be published. A bus that does not take them must not hold up transactions, and losing some makes
/// answers slower, never wrong.
const QUEUE: usize = 4096;

/// Publishes what changed, beside the transactions.
#[derive(Debug, Clone)]
pub(crate) struct Changes(mpsc::Sender<Told>);

#[derive(Debug)]
enum Told {
    Change(ChangeFeed),
    /// Answered when everything before it was published.
    Mark(oneshot::Sender<()>),
}

impl Changes {
    /// Starts publishing; ends when the last clone is dropped.
    pub(crate) fn start(feed: Arc<dyn Feed>) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let publishing = async move {
            while let Some(told) = receiver.recv().await {
                let change = match told {
                    Told::Change(change) => change,
                    Told::Mark(passed) => {
                        let _ = passed.send(());
                        continue;
                    }
                };
                let span = publish_span(&change);
                if let Err(error) = feed.publish_changes(change).instrument(span).await {
                    counter!("souk_projector_feed_failures_total").increment(1);
                    tracing::debug!(%error, "a change feed message was not published");
                }
            }
        };
        (Self(sender), tokio::spawn(publishing))
    }

    pub(crate) fn publish(&self, change: ChangeFeed) {
        if self.0.try_send(Told::Change(change)).is_err() {
            counter!("souk_projector_feed_failures_total").increment(1);
        }
    }

    /// Waits until what was told so far is on its way, but not longer than `patience`: who takes a log over shall not speak
    /// before the last word about it.
    pub(crate) async fn flush(&self, patience: Duration) {
        let (mark, passed) = oneshot::channel();
        let flushed = async {
            if self.0.send(Told::Mark(mark)).await.is_ok() {
                let _ = passed.await;
            }
        };
        let _ = timeout(patience, flushed).await;
    }
}

/// A span of the traces that are sampled, if any.
fn publish_span(change: &ChangeFeed) -> Span {
    if change.traceparents.is_empty() {
        return Span::none();
    }
    let span = info_span!("publish changes", partition = change.partition, position = change.position);
    telemetry::set_parents(&span, change.traceparents.iter().map(String::as_str));
    span
}

/// A message of one log whose checkpoint went from `from` to `checkpoint`.
pub(crate) fn message(checkpoint: &Checkpoint, from: Position) -> ChangeFeed {
    ChangeFeed {
        region: checkpoint.log.region.0.into(),
        partition: checkpoint.log.partition.0.into(),
        epoch: checkpoint.epoch.0,
        from_position: from.0,
        position: checkpoint.position.0,
        rows: Vec::new(),
        revision: checkpoint.revision,
        repaired_ms: checkpoint.repaired.0,
        time_ms: checkpoint.written.0,
        traceparents: Vec::new(),
        epochs: Vec::new(),
        rebuilding: checkpoint.rebuilding,
    }
}

/// Whether caches are given a row beside being told its name. Not if its entity began so long ago that nobody waits for it any more: no
/// cache has it, and when a catalogue is imported faster than it is projected, each row would be encoded, sent, decoded and kept once
/// for each replica.
fn given(row: &Row, now: UnixMillis) -> bool {
    let began = first_event(row);
    began.is_none_or(|began| now.0 - began.0 <= AWAITED_FOR.as_millis() as i64)
}

/// The rows of entities that changed, per log.
pub(crate) fn changed_rows(rows: &BTreeMap<&'static str, Vec<Row>>, now: UnixMillis) -> BTreeMap<LogId, Vec<ChangedRow>> {
    let named = || {
        let all = rows.iter().flat_map(|(view, rows)| rows.iter().map(move |row| (*view, row)));
        all.filter_map(|(view, row)| {
            let (key, body) = changed_body(view, row)?;
            Some((view, row.key.log, (key, body.filter(|_| given(row, now)))))
        })
    };
    let mut changed: BTreeMap<LogId, (usize, Vec<ChangedRow>)> = BTreeMap::new();
    for (_, log, (key, _)) in named() {
        changed.entry(log).or_default().0 += key.len() + NAME_BYTES;
    }
    for (view, log, (key, body)) in named() {
        let (bytes, of_log) = changed.entry(log).or_default();
        let body = body.filter(|body| body.len() <= MAX_ROW_BYTES && *bytes + body.len() <= MAX_ROWS_BYTES);
        *bytes += body.map_or(0, |body| body.len());
        of_log.push(ChangedRow { view: view.to_owned(), key: key.to_owned(), row: body.cloned() });
    }
    changed.into_iter().map(|(log, (_, rows))| (log, rows)).collect()
}

/// Traceparents for a message: distinct and sampled, at most 16.
pub(crate) fn traceparents<'a>(all: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for traceparent in all {
        if distinct.len() == MAX_TRACEPARENTS {
            break;
        }
        if telemetry::is_sampled(traceparent) && !distinct.iter().any(|known| known == traceparent) {
            distinct.push(traceparent.to_owned());
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use souk_event_sourcing::{Partition, Region};
    use souk_read_store::{Kind, RowKey, Value};
    use souk_views::PRODUCT;

    use super::*;

    const LOG: LogId = LogId { region: Region(1), partition: Partition(0) };

    fn product(number: usize, bytes: usize) -> Row {
        let body =
            |column: &&souk_read_store::Column| if column.kind == Kind::Bytes { Value::Bytes(vec![7; bytes].into()) } else { Value::Null };
        let key = RowKey { log: LOG, key: vec![Value::Text(format!("{number:064}"))] };
        Row { key, position: Position(1), revision: 1, values: PRODUCT.value_columns().map(|column| body(&column)).collect() }
    }

    #[test]
    fn a_row_that_somebody_may_wait_for_is_carried() {
        let now = UnixMillis(1_700_000_000_000);
        let carried = |version: i64, age: i64| {
            let mut row = product(1, 10);
            (row.values[0], row.values[3]) = (Value::Int(version), Value::Int(now.0 - age));
            changed_rows(&BTreeMap::from([(PRODUCT.name, vec![row])]), now)[&LOG][0].row.is_some()
        };
        // Clocks differ: what is written later than now is new as well.
        assert!(carried(1, 0) && carried(1, 5_000) && carried(1, -60_000), "it is waited for");
        assert!(carried(2, 5_001), "it may be in a cache");
        assert!(!carried(1, 5_001), "nobody asks for it");
    }

    /// The least that a NATS server must let pass is 64 KiB more.
    #[test]
    fn a_message_names_every_row_and_has_as_many_bodies_as_fit() {
        for (count, bytes) in [(4_096, 1_000), (4_096, 10), (100, 60_000), (3, MAX_ROW_BYTES + 1)] {
            let rows = BTreeMap::from([(PRODUCT.name, (0..count).map(|number| product(number, bytes)).collect())]);
            let rows = changed_rows(&rows, UnixMillis::now()).remove(&LOG).expect("of this log");
            let bodies = rows.iter().filter(|row| row.row.is_some()).count();
            assert_eq!(rows.len(), count);
            assert_eq!(bodies > 0, bytes <= MAX_ROW_BYTES, "{count} rows of {bytes}");
            let message = ChangeFeed { rows, ..Default::default() };
            assert!(message.encoded_len() <= MAX_ROWS_BYTES + 16 * 1024, "{count} rows of {bytes}: {}", message.encoded_len());
            assert!(
                bodies == count || bytes > MAX_ROW_BYTES || message.encoded_len() > MAX_ROWS_BYTES / 2,
                "{bodies} of {count} rows of {bytes}"
            );
        }
    }
}
