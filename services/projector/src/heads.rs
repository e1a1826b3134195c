use std::{collections::BTreeMap, sync::Arc, time::Instant};

use futures::StreamExt;
use souk_bus::Feed;
use souk_event_sourcing::{LogHash, LogId, Partition, Position, Region};
use souk_proto::log::v1::{EpochStart, HeadAnnouncement};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// Where a log ends, as its owner announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub position: Position,
    /// `None` when the announcement brought none.
    pub hash: Option<LogHash>,
    pub heard: Instant,
}

/// The announced heads of all logs of a process; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Heads(Arc<BTreeMap<LogId, Announced>>);

#[derive(Debug)]
struct Announced {
    head: watch::Sender<Option<Head>>,
    epochs: watch::Sender<Vec<EpochStart>>,
}

impl Heads {
    pub(crate) fn new(logs: impl IntoIterator<Item = LogId>) -> Self {
        Self(Arc::new(
            logs.into_iter()
                .map(|log| (log, Announced { head: watch::Sender::new(None), epochs: watch::Sender::new(Vec::new()) }))
                .collect(),
        ))
    }

    /// The last announcement of `log`.
    pub(crate) fn of(&self, log: LogId) -> Option<Head> {
        self.0.get(&log).and_then(|announced| *announced.head.borrow())
    }

    /// The announcements of `log` as they come.
    pub(crate) fn watch(&self, log: LogId) -> watch::Receiver<Option<Head>> {
        self.0.get(&log).map_or_else(|| watch::Sender::new(None).subscribe(), |announced| announced.head.subscribe())
    }

    /// The latest epochs of `log` as they were last announced.
    pub(crate) fn epochs(&self, log: LogId) -> Vec<EpochStart> {
        self.0.get(&log).map(|announced| announced.epochs.borrow().clone()).unwrap_or_default()
    }

    pub(crate) fn announce(&self, announcement: &HeadAnnouncement) {
        let (Ok(region), Ok(partition)) = (u16::try_from(announcement.region), u16::try_from(announcement.partition)) else { return };
        let log = LogId { region: Region(region), partition: Partition(partition) };
        if let Some(Announced { head, epochs }) = self.0.get(&log) {
            let hash = LogHash::from_slice(&announcement.hash);
            // Before the head: whoever is woken by a log that went back finds where it did.
            if !announcement.epochs.is_empty() {
                epochs.send_replace(announcement.epochs.clone());
            }
            head.send_replace(Some(Head { position: Position(announcement.position), hash, heard: Instant::now() }));
        }
    }

    /// Listens to one region until `shutdown`.
    pub(crate) async fn listen(self, feed: Arc<dyn Feed>, region: Region, mut backoff: Backoff, shutdown: CancellationToken) {
        let listening = async {
            loop {
                match feed.subscribe_heads(region).await {
                    Ok(mut heads) => {
                        backoff.reset();
                        while let Some(announcement) = heads.next().await {
                            self.announce(&announcement);
                        }
                        tracing::warn!(%region, "announcements of heads ended; subscribing again");
                    }
                    Err(error) => tracing::warn!(%region, %error, "cannot hear announcements of heads; trying again"),
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        };
        tokio::select! {
            () = listening => {}
            () = shutdown.cancelled() => {}
        }
    }
}
