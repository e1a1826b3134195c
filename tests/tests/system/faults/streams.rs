//! What becomes of JetStream streams in bad hands: lost, cut short, changed, in another order, with holes.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{Context, new, stream::Config};
use futures::TryStreamExt;
use rand::{Rng, rngs::SmallRng};
use souk_devstack::Stack;
use souk_tests::until;

use super::PATIENCE;

#[derive(Debug, Clone, Copy)]
pub(super) enum Damage {
    /// All files of the server are gone.
    Wiped,
    /// One stream is gone.
    Deleted,
    /// One stream has lost its end, as of a server that lost its last blocks.
    Truncated,
    /// The content of one message is another.
    Altered,
    /// A message stands there a second time.
    Doubled,
    /// Two messages have changed places.
    Swapped,
    /// One message is gone from the middle.
    Punched,
}

impl Damage {
    pub const ALL: [Self; 7] = [Self::Wiped, Self::Deleted, Self::Truncated, Self::Altered, Self::Doubled, Self::Swapped, Self::Punched];

    pub async fn inflict(self, stack: &mut Stack, random: &mut SmallRng) -> Result<()> {
        if matches!(self, Self::Wiped) {
            stack.nats.kill9().await?;
            stack.nats.wipe()?;
            return stack.nats.start_again().await;
        }
        let context = new(async_nats::connect(stack.nats.url()).await?);
        let name = some_stream(&context, random).await?;
        let stream = context.get_stream(&name).await?;
        let (config, state) = (stream.cached_info().config.clone(), stream.cached_info().state.clone());
        if matches!(self, Self::Deleted) {
            context.delete_stream(&name).await?;
            return Ok(());
        }
        let mut messages = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            match stream.get_raw_message(sequence).await {
                Ok(message) => messages.push((message.headers, message.payload)),
                // The relay made it anew meanwhile: it will do.
                Err(_) => break,
            }
        }
        ensure!(messages.len() > 3, "{name} has {} messages", messages.len());
        let place = random.random_range(1..messages.len() - 1);
        match self {
            Self::Truncated => messages.truncate(place),
            Self::Altered => {
                let mut payload = messages[place].1.to_vec();
                let byte = random.random_range(0..payload.len());
                payload[byte] ^= 1 << random.random_range(0..8);
                messages[place].1 = payload.into();
            }
            Self::Doubled => messages.insert(place, messages[place].clone()),
            Self::Swapped => messages.swap(place, place - 1),
            Self::Wiped | Self::Deleted | Self::Punched => {}
        }
        let subject = config.subjects.first().context("no subject")?.clone();
        let config = Config { first_sequence: Some(state.first_sequence), deny_delete: false, ..config };
        context.delete_stream(&name).await?;
        // The relay may make it first; then the fault is a deletion with foreign messages behind it.
        let _ = context.create_stream(config).await;
        for (headers, payload) in messages {
            let headers = without_expectations(headers);
            if context.publish_with_headers(subject.clone(), headers, payload).await?.await.is_err() {
                break;
            }
        }
        if matches!(self, Self::Punched) {
            // Gone, or closed to this, where the relay has made it anew.
            if let Ok(stream) = context.get_stream(&name).await {
                let _ = stream.delete_message(state.first_sequence + place as u64).await;
            }
        }
        Ok(())
    }
}

/// Of those with more than a few messages.
async fn some_stream(context: &Context, random: &mut SmallRng) -> Result<String> {
    until("streams with messages", PATIENCE, || {
        let random = &mut *random;
        let context = context.clone();
        let choice = random.random_range(0..usize::MAX);
        async move {
            let infos: Vec<_> = context.streams().try_collect().await?;
            let filled: Vec<_> = infos.into_iter().filter(|info| info.state.messages > 8).map(|info| info.config.name).collect();
            Ok((!filled.is_empty()).then(|| filled[choice % filled.len()].clone()))
        }
    })
    .await
}

/// As a foreign publisher sends it.
fn without_expectations(headers: async_nats::HeaderMap) -> async_nats::HeaderMap {
    let kept = headers.iter().filter(|(name, _)| !AsRef::<str>::as_ref(*name).starts_with("Nats-Expected"));
    kept.flat_map(|(name, values)| values.iter().map(move |value| (name.clone(), value.clone()))).collect()
}
