//! Wrong appends: each lacks one part of `append.sql`, and a law of the suite must notice that.

use std::pin::Pin;

use bytes::Bytes;
use souk_event_sourcing::LogId;
use souk_event_store::{
    Belief, PostgresLane, PostgresStore, ReplicaBatch,
    conformance::{
        Adapter, a_command_without_events_is_remembered_and_counted, a_repeated_request_gets_its_reply_and_holds_up_only_its_own_log,
        a_stale_stream_refuses_every_stream_of_the_part, another_belief_writes_nothing,
    },
};
use tokio::task::LocalSet;

use crate::world::{RETENTION, World};

type Law = fn(Mutated) -> Pin<Box<dyn Future<Output = ()>>>;

/// A change of the statement, the law that it breaks, and what that law then says.
struct Mutant {
    lacks: &'static str,
    instead: &'static str,
    law: Law,
    says: &'static str,
}

struct Mutated {
    world: World,
    lacks: &'static str,
    instead: &'static str,
}

impl Adapter for Mutated {
    type Lane = PostgresLane;
    type Log = PostgresStore;

    fn lane(&self) -> PostgresLane {
        self.world.lane().with_append(|statement| {
            assert_eq!(statement.matches(self.lacks).count(), 1, "'{}' stands once in the statement", self.lacks);
            statement.replace(self.lacks, self.instead)
        })
    }

    fn log(&self) -> &PostgresStore {
        &self.world.store
    }

    async fn take(&self, log: LogId) -> Belief {
        self.world.take(log).await
    }

    async fn remembered(&self, batch: &ReplicaBatch) -> Vec<Bytes> {
        let rows = self.world.store.ledger_of(batch.log, &batch.events, RETENTION).await.expect("ledger");
        rows.into_iter().map(|row| row.reply).collect()
    }
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        lacks: " and h.epoch = i.epoch",
        instead: "",
        law: |mutated| Box::pin(async move { another_belief_writes_nothing(&mutated).await }),
        says: "Belief { epoch",
    },
    Mutant {
        lacks: " and h.batch = i.batch",
        instead: "",
        law: |mutated| Box::pin(async move { another_belief_writes_nothing(&mutated).await }),
        says: "Belief { epoch",
    },
    Mutant {
        lacks: " and h.position = i.position",
        instead: "",
        law: |mutated| Box::pin(async move { another_belief_writes_nothing(&mutated).await }),
        says: "Belief { epoch",
    },
    Mutant {
        lacks: "batch = h.batch + 1",
        instead: "batch = h.batch",
        law: |mutated| Box::pin(async move { a_command_without_events_is_remembered_and_counted(&mutated).await }),
        says: "the batch number moved",
    },
    Mutant {
        lacks: "not exists (select from dup d where d.partition = f.partition) and ",
        instead: "",
        law: |mutated| Box::pin(async move { a_repeated_request_gets_its_reply_and_holds_up_only_its_own_log(&mutated).await }),
        says: "23505",
    },
    Mutant {
        lacks: " and not exists (select from stale s where s.partition = f.partition)",
        instead: "",
        law: |mutated| Box::pin(async move { a_stale_stream_refuses_every_stream_of_the_part(&mutated).await }),
        says: "23505",
    },
    // A stream head that moves without its events: the entity is dead for ever.
    Mutant {
        lacks: "join good g on g.partition = i.partition where i.version <> i.expected",
        instead: "where i.version <> i.expected",
        law: |mutated| Box::pin(async move { another_belief_writes_nothing(&mutated).await }),
        says: "stale",
    },
];

#[tokio::test]
async fn an_append_that_lacks_a_part_is_noticed() {
    // Keeps the server, which all of them share.
    let _world = World::new().await;
    for Mutant { lacks, instead, law, says } in MUTANTS {
        let mutated = Mutated { world: World::new().await, lacks, instead };
        let broken = LocalSet::new().run_until(async { tokio::task::spawn_local(law(mutated)).await }).await;
        let panic = broken.expect_err(&format!("nobody noticed that '{lacks}' is missing")).into_panic();
        let said = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert!(said.contains(says), "'{lacks}' is missing, which was noticed as: {said}");
        assert!(!said.contains("stands once"), "{said}");
        println!("without '{lacks}': {}", said.lines().next().unwrap_or_default());
    }
}
