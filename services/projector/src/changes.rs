use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics::counter;
use souk_bus::Feed;
use souk_event_sourcing::{LogId, Position};
use souk_proto::log::v1::{ChangeFeed, ChangedRow};
use souk_read_store::{Checkpoint, Row};
use souk_runtime::telemetry;
use souk_views::changed_body;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{Instrument, Span, info_span};

/// Larger rows are named without their body: caches read them again.
const MAX_ROW_BYTES: usize = 64 * 1024;
/// Bodies in one message; with keys and envelope it stays below the bus's limit.
const MAX_BODIES_BYTES: usize = 512 * 1024;
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

/// The rows of entities that changed, per log.
pub(crate) fn changed_rows(rows: &BTreeMap<&'static str, Vec<Row>>) -> BTreeMap<LogId, Vec<ChangedRow>> {
    let mut changed: BTreeMap<LogId, (usize, Vec<ChangedRow>)> = BTreeMap::new();
    for (view, rows) in rows {
        for row in rows {
            let Some((key, body)) = changed_body(view, row) else { continue };
            let (bytes, of_log) = changed.entry(row.key.log).or_default();
            let body = body.filter(|body| body.len() <= MAX_ROW_BYTES && *bytes + body.len() <= MAX_BODIES_BYTES);
            *bytes += body.map_or(0, |body| body.len());
            of_log.push(ChangedRow { view: (*view).to_owned(), key: key.to_owned(), row: body.cloned() });
        }
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
