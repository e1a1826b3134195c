//! The change feed as the cache hears it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use souk_bus::Feed;
use souk_event_sourcing::{Region, UnixMillis};
use souk_proto::log::v1::ChangeFeed;
use souk_runtime::telemetry::set_parents;
use tracing::Instrument;

use crate::cache::RowCache;

const RETRY: Duration = Duration::from_millis(500);

/// Feeds the cache with what the projectors of `region` announce, until it is dropped. What is missed meanwhile shows as a
/// hole in the next message.
pub(crate) async fn follow(bus: Arc<dyn Feed>, region: Region, cache: Arc<RowCache>) {
    loop {
        match bus.subscribe_changes(region).await {
            Ok(mut messages) => {
                while let Some(message) = messages.next().await {
                    hear(&cache, message).await;
                }
                tracing::warn!(%region, "the change feed ended; subscribing again");
            }
            Err(error) => tracing::warn!(%region, %error, "no change feed"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn hear(cache: &RowCache, message: ChangeFeed) {
    let heard = async {
        if cache.hear(&message, Instant::now(), UnixMillis::now()).await.is_none() {
            tracing::debug!(region = message.region, partition = message.partition, "changes of a log that is not kept here");
        }
    };
    if message.traceparents.is_empty() {
        return heard.await;
    }
    let span = tracing::info_span!("change feed", partition = message.partition, position = message.position, rows = message.rows.len());
    set_parents(&span, message.traceparents.iter().map(String::as_str));
    heard.instrument(span).await;
}
