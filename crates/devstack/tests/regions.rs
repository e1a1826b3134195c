//! The servers of several regions and the ways between them; with their services they are under test as a whole elsewhere.

use std::fs;

use souk_devstack::{Regions, RegionsOptions, RunFile, Stack};
use sqlx::{Connection, PgConnection};

fn ways(stack: &Stack) -> toml::Table {
    let settings: toml::Table = toml::from_str(&fs::read_to_string(stack.settings_file()).unwrap()).unwrap();
    settings["peers"]["regions"].as_table().unwrap().clone()
}

async fn count(stack: &Stack) -> i64 {
    let mut connection = PgConnection::connect(&stack.write_databases()[0].url).await.unwrap();
    sqlx::query_scalar("select count(*) from kept").fetch_one(&mut connection).await.unwrap()
}

async fn execute(stack: &Stack, sql: &'static str) {
    let mut connection = PgConnection::connect(&stack.write_databases()[0].url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn regions_have_servers_of_their_own_and_reach_each_other_by_links_alone() {
    let mut regions = Regions::temporary(&["eu", "us"], &["ap"], |_, options| options.partitions = Some(4)).await.unwrap();
    assert!(regions.names().eq(["eu", "us"]));
    for (from, to) in [("eu", "us"), ("us", "eu")] {
        let ways = ways(regions.stack(from).unwrap());
        assert!(ways.keys().eq(["ap", to].iter().copied()), "those that may come are known, too: {ways:?}");
        assert_eq!(ways[to].as_str().unwrap(), regions.link(from, to).unwrap().urls());
        let there = regions.stack(to).unwrap().endpoint("command_internal");
        assert_ne!(ways[to].as_str().unwrap(), there, "nobody is called past the link");
    }
    let file = regions.run_file().unwrap();
    let numbers: Vec<_> = file.regions().map(|region| (region.region.as_str(), region.region_number, region.partitions)).collect();
    assert_eq!(numbers, [("eu", 1, 4), ("us", 2, 4)]);
    assert!(file.control.as_ref().is_some_and(|socket| socket.exists()));
    assert_eq!(serde_json::from_str::<RunFile>(&serde_json::to_string(&file).unwrap()).unwrap(), file);
    assert!(file.region("ap").unwrap_err().to_string().contains("there is eu, us"));
    assert!(regions.stack_mut("ap").is_err() && regions.link("eu", "eu").is_err());

    execute(&regions.stacks()[0], "create table kept (id int); insert into kept values (1)").await;
    let backup = regions.back_up("eu", "before").await.unwrap();
    execute(&regions.stacks()[0], "insert into kept values (2)").await;
    regions.restore("eu", &backup).await.unwrap();
    assert_eq!(count(regions.stack("eu").unwrap()).await, 1, "what was committed since is gone");
    regions.wipe_jetstream("us").await.unwrap();
    regions.stack_mut("us").unwrap().kill_all().await.unwrap();
    assert!(regions.run_file().is_err(), "its servers do not run");
    let us = regions.stack_mut("us").unwrap();
    us.postgres.start_again().await.unwrap();
    us.nats.start_again().await.unwrap();
    regions.stop().await.unwrap();
}

#[tokio::test]
async fn names_that_are_none_are_refused_before_anything_starts() {
    let refused = async |names: &[&str]| {
        let options = RegionsOptions::new("/nonexistent/data", "/nonexistent/logs", names.iter().copied());
        Regions::start(options).await.unwrap_err().to_string()
    };
    assert_eq!(refused(&[]).await, "no region is named");
    assert_eq!(refused(&["eu", "eu"]).await, "region \"eu\" is named twice");
    for name in ["EU", "e.u", "1eu", "-eu", "", &"x".repeat(33)] {
        assert!(refused(&["eu", name]).await.contains("names no region"), "{name:?}");
    }
}
