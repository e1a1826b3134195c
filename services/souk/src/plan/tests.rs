use proptest::prelude::*;

use super::{arithmetic::*, capacity::Capacities, demand::*, need::*};

/// The plan for so many requests per second, all else being usual.
pub fn plan_of(requests: f64) -> Plan {
    Plan::new(Demand::of(requests), Objectives::of(requests), Frame::default(), Capacities::default()).unwrap()
}

#[test]
fn a_million_users_are_what_the_textbook_says() {
    let plan = plan_of(1e6 * REQUESTS_PER_USER);
    assert_eq!((plan.rates.requests, plan.rates.commands, plan.rates.queries), (10_000.0, 1_000.0, 9_000.0));
    assert_eq!(plan.capacities.read_replica.per_second, 5_000.0);
    assert_eq!(plan.count(Part::ReadReplica), 2);
    let storage = plan.storage;
    assert_eq!((storage.commands_per_second, storage.commands_per_day, storage.commands_per_year), (1e6, 86.4e9, 31.536e12));
    assert_eq!((plan.network.payload_per_second, plan.network.share), (10e6, 0.08));
    let text = super::explain::text(&plan);
    for shown in [
        "1,000 commands/s",
        "9,000 queries/s",
        "2 read replicas",
        "1 MB/s of commands",
        "86.4 GB/day",
        "31.5 TB/year",
        "10 MB/s of payload",
        "8 % of 1 Gbit/s",
    ] {
        assert!(text.contains(&format!(" {shown}")), "{shown}\n{text}");
    }
}

#[test]
fn what_one_carries_within_an_objective_is_the_queue_s_formula() {
    let plan = plan_of(10_000.0);
    assert!((plan.usable.read_replica - (5_000.0 - 100f64.ln() / 0.010)).abs() < 1e-9);
    // A patient objective does not use up what is there.
    assert_eq!(plan.usable.write_database, 4_750.0);
    let hurried = Objectives { query_p99: 0.0009, ..Objectives::of(10_000.0) };
    let refused = Plan::new(Demand::of(10_000.0), hurried, Frame::default(), Capacities::default()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "99 of 100 queries within 0.9 ms cannot be had from parts that carry 5000/s: even an idle one takes 0.9 ms"
    );
}

#[test]
fn a_hundred_users_need_one_of_everything() {
    let plan = plan_of(1.0);
    let counts: Vec<_> =
        plan.needs.iter().filter(|need| !matches!(need.part, Part::Cache | Part::JetStream)).map(|need| need.count).collect();
    assert_eq!(counts, [1, 1, 1, 1, 1, 1, 0, 1]);
}

#[test]
fn views_are_of_all_regions_and_writes_of_one() {
    let one = plan_of(1000.0);
    let four =
        Plan::new(Demand { regions: 4, ..Demand::of(4000.0) }, Objectives::of(1000.0), Frame::default(), Capacities::default()).unwrap();
    assert_eq!(
        (four.rates.requests, four.rates.commands, four.storage.written),
        (one.rates.requests, one.rates.commands, one.storage.written)
    );
    assert_eq!((four.rates.projected, four.storage.viewed), (4.0 * one.rates.projected, 4.0 * one.storage.viewed));
}

#[test]
fn where_partitions_are_too_few_the_plan_says_so() {
    let plan = plan_of(1_000_000.0);
    let write = plan.need(Part::WriteDatabase);
    assert!(write.exceeded && write.count == 64, "{write:?}");
    assert!(super::explain::text(&plan).contains("write databases: 138.1 would be needed, 64 are as many as partitions"));
}

#[test]
fn streams_hold_a_day_or_as_much_as_is_sensible() {
    assert_eq!((plan_of(100.0).count(Part::JetStream), plan_of(100.0).jetstream.hours), (64, 24.0));
    let large = plan_of(100_000.0);
    assert_eq!(large.count(Part::JetStream), 2048);
    assert!((large.jetstream.hours - 2048.0 * MIB / (10_000.0 * 1400.0 / 64.0) / 3600.0).abs() < 1e-9);
}

prop_compose! {
    fn demands()(
        requests in 0.1f64..1e7, write_share in 0.0f64..=1.0, command_bytes in 1.0f64..5e5, reply_bytes in 1.0f64..1e6,
        entities in 1u64..10_000_000, zipf in 0.0f64..1.5, regions in 1u32..8,
    ) -> Demand {
        Demand { requests, write_share, command_bytes, reply_bytes, entities, zipf, regions }
    }
}

prop_compose! {
    fn objectives()(query_p99 in 0.002f64..1.0, command_p99 in 0.002f64..1.0, hit_ratio in 0.0f64..=1.0, spares in 0u64..4, nats_spares in 0u64..4) -> Objectives {
        Objectives { query_p99, command_p99, hit_ratio, spares, nats_spares }
    }
}

prop_compose! {
    fn frames()(partitions in 1u64..256, days in 1.0f64..2000.0, disk in 1e11f64..1e14) -> Frame {
        Frame { partitions, days, disk, network: 1e9 }
    }
}

/// Every part of which the second plan has fewer.
fn shrunk(before: &Plan, after: &Plan) -> Vec<(Part, u64, u64)> {
    let pairs = before.needs.iter().map(|need| (need.part, need.count, after.count(need.part)));
    pairs.filter(|(_, before, after)| after < before).collect()
}

proptest! {
    #[test]
    fn more_load_never_needs_fewer_parts(
        demand in demands(), objectives in objectives(), frame in frames(), factors in prop::array::uniform4(1.0f64..20.0),
    ) {
        let plan = |demand: &Demand| Plan::new(demand.clone(), objectives.clone(), frame.clone(), Capacities::default()).unwrap();
        let before = plan(&demand);
        let [requests, command_bytes, reply_bytes, entities] = factors;
        let larger = [
            Demand { requests: demand.requests * requests, ..demand.clone() },
            Demand { command_bytes: demand.command_bytes * command_bytes, ..demand.clone() },
            Demand { reply_bytes: demand.reply_bytes * reply_bytes, ..demand.clone() },
            Demand { entities: (demand.entities as f64 * entities) as u64, ..demand.clone() },
            Demand {
                requests: demand.requests * requests,
                entities: (demand.entities as f64 * entities) as u64,
                ..demand.clone()
            },
        ];
        for demand in larger {
            prop_assert_eq!(shrunk(&before, &plan(&demand)), vec![], "{:?}", demand);
        }
    }

    #[test]
    fn harder_objectives_never_need_fewer_parts(
        demand in demands(), objectives in objectives(), frame in frames(), factor in 1.0f64..4.0, more in 0u64..3,
    ) {
        let plan = |objectives: &Objectives| Plan::new(demand.clone(), objectives.clone(), frame.clone(), Capacities::default()).unwrap();
        let patient = Objectives { query_p99: objectives.query_p99 * factor, command_p99: objectives.command_p99 * factor, ..objectives.clone() };
        prop_assert_eq!(shrunk(&plan(&patient), &plan(&objectives)), vec![]);
        let safer = Objectives { spares: objectives.spares + more, nats_spares: objectives.nats_spares + more, ..objectives.clone() };
        prop_assert_eq!(shrunk(&plan(&objectives), &plan(&safer)), vec![]);
    }

    #[test]
    fn what_is_planned_carries_the_load(demand in demands(), objectives in objectives(), frame in frames()) {
        let plan = Plan::new(demand, objectives, frame, Capacities::default()).unwrap();
        for need in &plan.needs {
            let enough = need.exceeded || need.count == 0 || need.causes.iter().all(|cause| cause.wanted() <= need.count as f64 * (1.0 + 1e-8));
            prop_assert!(enough, "{:?}", need);
        }
        let (replicas, read) = (plan.count(Part::ReadReplica), plan.count(Part::ReadDatabase));
        prop_assert!(replicas.is_multiple_of(read));
        for part in [Part::WriteDatabase, Part::ReadDatabase] {
            prop_assert!(plan.frame.partitions.is_multiple_of(plan.count(part)));
        }
    }
}
