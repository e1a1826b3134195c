use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use souk_devstack::{Replica, Service};
use souk_tests::until;

use super::Bench;
use crate::{
    places::EachCommand,
    record::{Entry, progress},
    sources::{description, update},
    stage::PATIENCE,
};

/// Products that are made to be counted are numbered from here on.
const FIRST: u64 = 900_000_000;
const PARTITIONS: u64 = 64;

impl Bench {
    /// Of the commands that `souk-client` sends to two replicas, how many one passes on to the other.
    pub(super) async fn forwarded(&mut self) -> Result<()> {
        if !self.wants("forwarded") {
            return Ok(());
        }
        progress("commands through the client to two replicas");
        let second = self.stage.system.add_replica(Service::Command).await?;
        let replicas = [Replica::from(Service::Command), second];
        until("both replicas have logs", PATIENCE, || async {
            let of = |replica| self.stage.metric(replica, "souk_command_partitions");
            Ok((of(replicas[0]).await? + of(replicas[1]).await? == PARTITIONS as f64 && of(second).await? > 0.0).then_some(()))
        })
        .await?;
        let passed_on = async || {
            let mut total = 0.0;
            for replica in replicas {
                total += self.stage.metric(replica, "souk_forwarded_total").await?;
            }
            Ok::<_, anyhow::Error>(total)
        };
        let (before, client) = (passed_on().await?, self.client()?);
        let (commands, round) = (self.effort.of(50_000, 20_000, 500), rand::random::<u64>());
        stream::iter(0..commands)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(64, |number| {
                let (session, product) = (client.session(), number % self.stage.products + 1);
                async move { Ok(session.command(update(product, description(number ^ round))).await.map(drop)?) }
            })
            .await?;
        let share = (passed_on().await? - before) / commands as f64;
        self.stage.system.remove_replica(second).await?;
        let entry =
            Entry::on_record("forwarded", share, "commands passed on ÷ all, two replicas, through souk-client (wanted: at most 0.01)")
                .figure("commands", commands as f64);
        self.record(entry);
        Ok(())
    }

    /// Where a command of 1 KB leaves how many bytes.
    pub(super) async fn bytes(&mut self) -> Result<()> {
        if !self.wants("bytes") {
            return Ok(());
        }
        let each = EachCommand::measure(&mut self.stage, FIRST, self.effort.of(100_000, 40_000, 1_000)).await?;
        let note = "bytes a command of 1 KB leaves in the write database ÷ its event's payload (wanted: at most 4)";
        let entry = Entry::on_record("bytes", each.stored / each.payload, note).figure("payload", each.payload);
        let entry = each.places.iter().fold(entry, |entry, (place, bytes)| entry.figure(place, *bytes));
        self.record(entry);
        Ok(())
    }
}
