use std::time::Duration;

use souk_event_sourcing::Region;
use souk_event_store::End;
use tokio::{task::JoinSet, time::Instant};
use tracing::debug;

use crate::source::Source;

/// How long nobody asks a region that sent what does not fit.
const REFUSED: Duration = Duration::from_secs(60);
/// How long nobody asks a region that lent what the origin then did not have.
const UNTRUE: Duration = Duration::from_secs(3600);

/// Third regions that may have a copy of a log, for as long as its origin is away.
pub struct Lenders(Vec<Lender>);

struct Lender {
    source: Source,
    rests_until: Option<Instant>,
    /// Since the origin vouched for the copy last.
    lent: bool,
}

impl Lenders {
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        Self(sources.into_iter().map(|source| Lender { source, rests_until: None, lent: false }).collect())
    }

    /// Whoever has most of the log beyond a copy's end, under no older epoch than the copy knows: one that did not hear yet that
    /// the origin went back still has the lost part.
    pub async fn furthest(&self, end: End) -> Option<Source> {
        let mut heads = JoinSet::new();
        for lender in self.0.iter().filter(|lender| lender.rests_until.is_none_or(|until| until <= Instant::now())) {
            let source = lender.source.clone();
            heads.spawn(async move { (source.head().await, source) });
        }
        let mut furthest = None;
        while let Some(Ok((head, source))) = heads.join_next().await {
            match head {
                Ok(head) if head.position > end.position && head.epoch >= end.epoch => {
                    furthest = furthest.filter(|(position, _)| *position >= head.position).or(Some((head.position, source)));
                }
                Ok(_) => {}
                Err(error) => debug!(%error, "nothing to lend"),
            }
        }
        furthest.map(|(_, source)| source)
    }

    /// A region has lent.
    pub fn lent(&mut self, region: Region) {
        self.0.iter_mut().filter(|lender| lender.source.region == region).for_each(|lender| lender.lent = true);
    }

    /// A region sent what does not fit.
    pub fn refuse(&mut self, region: Region) {
        let until = Instant::now() + REFUSED;
        self.0.iter_mut().filter(|lender| lender.source.region == region).for_each(|lender| lender.rests_until = Some(until));
    }

    /// The origin is back and has what was lent, or it has not.
    pub fn settle(&mut self, true_to_origin: bool) {
        let until = Instant::now() + UNTRUE;
        for lender in &mut self.0 {
            if std::mem::take(&mut lender.lent) && !true_to_origin {
                lender.rests_until = Some(until);
            }
        }
    }
}
