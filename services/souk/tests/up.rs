//! `souk up` as people and scripts start, kill and restart it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use souk_devstack::{ProcessIdentity, RunFile, TemporaryFolder, readiness, souk_folder};

/// A folder as that of a fresh clone after `just setup`.
struct Place {
    folder: TemporaryFolder,
}

impl Place {
    fn new() -> Self {
        let folder = TemporaryFolder::create().unwrap();
        fs::create_dir(folder.path().join(".souk")).unwrap();
        symlink(souk_folder().join("tools"), folder.path().join(".souk/tools")).unwrap();
        Self { folder }
    }

    fn souk(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_souk"));
        command.args(["up", "--json", "--free-ports"]).args(args).current_dir(self.folder.path()).env_remove("SOUK_RUN_FILE");
        command
    }

    fn run_file(&self) -> PathBuf {
        self.folder.path().join(".souk/run.json")
    }

    /// Starts it and waits for its JSON object.
    fn up(&self, args: &[&str]) -> Up {
        let mut child = self.souk(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        Up { child, facts }
    }

    /// What a command says of the system that runs.
    fn of_running(&self, command: &str) -> String {
        let Output { status, stdout, stderr } = self.command(&[command]);
        assert!(status.success(), "{command}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn command(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_souk")).args(args).current_dir(self.folder.path()).output().unwrap()
    }

    /// Starts it, expecting that it refuses.
    fn refused(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.souk(args).output().unwrap();
        assert!(!status.success() && stdout.is_empty());
        String::from_utf8(stderr).unwrap()
    }
}

struct Up {
    child: Child,
    facts: RunFile,
}

impl Up {
    fn processes(&self) -> Vec<ProcessIdentity> {
        let servers = [&self.facts.postgres.process, &self.facts.nats.process];
        servers
            .into_iter()
            .chain(self.facts.standbys.iter().map(|standby| &standby.process))
            .chain(self.facts.services.values())
            .cloned()
            .collect()
    }

    async fn assert_all_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        for process in self.processes() {
            while process.is_alive() {
                assert!(Instant::now() < deadline, "{process:?} lives on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn interrupt(mut self) -> std::process::ExitStatus {
        self.facts.souk.signal(Signal::SIGINT).unwrap();
        self.child.wait().unwrap()
    }
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn one_process_serves_everything_until_it_is_asked_to_stop() {
    let place = Place::new();
    // Everything that may passes through a pooler in transaction mode.
    let up = place.up(&["--write-shards", "2", "--pooler"]);
    assert!(up.facts.services.values().all(|process| *process == up.facts.souk), "they share a process");
    assert_eq!((up.facts.write_databases.len(), up.facts.read_databases.len()), (2, 1));
    assert_eq!(readiness(port(&up.facts.addresses.ops["query-1"])).await.unwrap(), None);
    assert_eq!(RunFile::running(&place.run_file()).unwrap(), up.facts);
    let story = place.of_running("demo");
    assert!(story.contains("Again, with: souk order timeline"), "{story}");
    assert!(place.of_running("audit").contains("clean"));
    let refused = place.refused(&[]);
    assert!(refused.contains(&format!("souk is up already (process {}", up.facts.souk.pid)), "{refused}");

    let processes = up.processes();
    assert!(up.interrupt().success());
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert!(!place.run_file().exists());

    let refused = place.refused(&["--write-shards", "1"]);
    assert!(refused.contains("has 2 write shards, not 1"), "{refused}");
    let fresh = place.up(&["--write-shards", "3", "--fresh"]);
    assert_eq!(fresh.facts.write_databases.len(), 3);
    assert!(fresh.interrupt().success());
}

#[test]
fn the_load_of_a_shop_is_measured_and_held_to_its_thresholds() {
    let place = Place::new();
    let up = place.up(&[]);
    let seeded = place.command(&["seed", "--products", "20", "--customers", "20"]);
    assert!(seeded.status.success(), "{}", String::from_utf8_lossy(&seeded.stderr));
    // The scenario people use, for a small shop and a machine that has other work.
    let scenario = include_str!("../../../tests/load/scenarios/shop.toml").replace("count = 1000", "count = 20");
    let scenario: Vec<_> = scenario.lines().filter(|line| !line.starts_with("thresholds")).collect();
    fs::write(place.folder.path().join("shop.toml"), scenario.join("\n")).unwrap();
    let load = |threshold| {
        place.command(&["load", "--config", "shop.toml", "--seed", "7", "-r", "100", "-z", "10s", "-O", "json", "--threshold", threshold])
    };

    let kept = load("errors < 0.1 %");
    assert!(kept.status.success(), "{}{}", String::from_utf8_lossy(&kept.stderr), String::from_utf8_lossy(&kept.stdout));
    let report: serde_json::Value = serde_json::from_slice(&kept.stdout).unwrap();
    assert_eq!(report["statusCodeDistribution"], serde_json::json!({ "OK": 1000 }));
    assert_eq!((&report["souk"]["intended"], &report["souk"]["unsent"]), (&1000.into(), &0.into()));
    assert!(report["souk"]["lag"]["p50"].as_u64().unwrap() > 0 && report["latencyDistribution"][6]["percentage"] == 99);
    for step in report["souk"]["steps"].as_array().unwrap() {
        assert!(step["count"].as_u64().unwrap() > 0, "no {}", step["name"]);
    }

    let missed = load("max < 1us");
    assert_eq!(missed.status.code(), Some(1));
    let said = String::from_utf8(missed.stderr).unwrap();
    assert!(said.contains("1 of 1 thresholds missed, such as max < 1us"), "{said}");
    assert!(place.of_running("audit").contains("clean"));
    assert!(up.interrupt().success());
}

#[test]
fn regions_are_started_joined_seen_and_added_to() {
    let place = Place::new();
    let small = ["--partitions", "4", "--regions"];
    let up = place.up(&[&small[..], &["eu,us"]].concat());
    assert_eq!((up.facts.region.as_str(), up.facts.others.len(), up.facts.others[0].region.as_str()), ("eu", 1, "us"));
    assert!(up.facts.regions().all(|region| region.services.contains_key("replicator-1")));
    let told = |args: &[&str]| {
        let Output { status, stdout, stderr } = place.command(args);
        assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    assert!(told(&["demo", "--write", "us", "--read", "eu"]).contains("What us had answered was read in eu"));
    assert!(told(&["region", "link", "eu", "us", "--down", "--one-way"]).starts_with("eu → us  down\nus → eu  up\n"));
    let pairs: serde_json::Value = serde_json::from_str(&told(&["status", "--json"])).unwrap();
    assert_eq!((&pairs["pairs"][0]["link"]["down"], &pairs["pairs"][1]["link"]["down"]), (&true.into(), &false.into()));
    assert!(told(&["region", "link", "eu", "us", "--up"]).starts_with("eu → us  up\n"));
    assert!(
        told(&["audit", "--all-regions"]).contains("clean: log, streams, views, ledger and stock agree in eu, us, and so do all copies")
    );
    assert!(told(&["audit", "--region", "us"]).contains("clean"));
    assert!(up.interrupt().success());

    let refused = place.refused(&["--regions", "us,eu"]);
    assert!(refused.contains("is that of region us with number 2, not of us with number 1"), "{refused}");
    let three = place.up(&["--regions", "eu,us,ap"]);
    assert!(told(&["region", "list"]).contains("ap"));
    let document: serde_json::Value = serde_json::from_str(&told(&["region", "show"])).unwrap();
    assert_eq!((&document["version"], document["regions"].as_array().unwrap().len()), (&2.into(), 3));
    assert!(told(&["audit", "--all-regions"]).contains("agree in eu, us, ap"));
    assert!(three.interrupt().success());
    let alone = place.command(&["region", "list"]);
    assert!(String::from_utf8_lossy(&alone.stderr).contains("no running system"), "{alone:?}");
}

#[tokio::test]
async fn a_killed_souk_leaves_no_process_behind_and_the_next_start_cleans_up() {
    let place = Place::new();
    let mut first = place.up(&["--replicas", "query=2", "--read-replicas", "1"]);
    let mut pids: Vec<u32> = first.processes().iter().map(|process| process.pid).collect();
    pids.push(first.facts.souk.pid);
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 9, "every replica and every standby is a process of its own");
    let replicas = ["command-1", "projector-1", "query-1", "query-2", "saga-1"];
    assert!(first.facts.services.keys().eq(replicas));
    for replica in replicas {
        assert_eq!(readiness(port(&first.facts.addresses.ops[replica])).await.unwrap(), None, "{replica}");
    }
    assert_eq!(first.facts.addresses.query.split(',').count(), 2);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    if cfg!(target_os = "linux") {
        first.assert_all_gone().await;
    }
    let second = place.up(&["--processes"]);
    first.assert_all_gone().await;
    assert_eq!(second.facts.standbys.len(), 1, "as many as before");
    assert_eq!(second.facts.write_databases[0].name, first.facts.write_databases[0].name);
    assert!(second.interrupt().success());
}

#[tokio::test]
async fn a_service_that_is_killed_comes_back_at_its_address() {
    let place = Place::new();
    let up = place.up(&["--processes"]);
    let killed = up.facts.services["query-1"].clone();
    killed.signal(Signal::SIGKILL).unwrap();
    let ops = port(&up.facts.addresses.ops["query-1"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = RunFile::running(&place.run_file()).unwrap();
        if now.services["query-1"] != killed && matches!(readiness(ops).await, Ok(None)) {
            assert_eq!(now.addresses, up.facts.addresses);
            break;
        }
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(up.interrupt().success());
}

#[test]
fn a_taken_port_is_one_line_that_names_port_and_flag() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = place.refused(&["--query-port", &port.to_string()]);
    assert_eq!(refused, format!("souk: port {port} is taken, choose another with --query-port\n"));
    assert!(!place.folder.path().join(".souk/data").exists(), "nothing was started");
}
