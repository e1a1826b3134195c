//! Postgres and NATS as they are started, killed, restarted and left behind.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream::{self, stream};
use nix::sys::signal::Signal;
use souk_devstack::{Nats, NatsOptions, Postgres, PostgresOptions, ProcessIdentity, RunFile, Stack, StackOptions, TemporaryFolder};
use sqlx::{Connection, Executor, PgConnection, Row};

async fn postgres(folder: &Path) -> Result<Postgres> {
    let mut options = PostgresOptions::new(folder.join("postgres"));
    options.databases = vec!["one".into(), "two".into()];
    Postgres::start(options).await
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from kept").fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn postgres_keeps_what_it_committed_over_kills_and_comes_back_on_its_port() {
    let folder = TemporaryFolder::create().unwrap();
    let mut postgres = postgres(folder.path()).await.unwrap();
    assert!(postgres.major_version() >= 15);
    let (port, url) = (postgres.port(), postgres.url("one"));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("create table kept (n int)").execute(&mut connection).await.unwrap();
    for round in 1..=3 {
        sqlx::query("insert into kept values ($1)").bind(round).execute(&mut connection).await.unwrap();
        // A backend that does not look up from its work keeps the next server from starting, unless it is killed, too.
        let mut busy = PgConnection::connect(&url).await.unwrap();
        let burn =
            tokio::spawn(async move { sqlx::query("select count(*) from generate_series(1, 1e9::bigint)").execute(&mut busy).await });
        while sqlx::query("select 1 from pg_stat_activity where query like '%1e9%' and state = 'active' and pid <> pg_backend_pid()")
            .fetch_optional(&mut connection)
            .await
            .unwrap()
            .is_none()
        {}
        postgres.kill9().await.unwrap();
        assert!(!postgres.is_running());
        assert!(burn.await.unwrap().is_err());
        postgres.start_again().await.unwrap();
        assert_eq!(postgres.port(), port);
        connection = PgConnection::connect(&url).await.unwrap();
        assert_eq!(count(&mut connection).await, i64::from(round));
    }
    postgres.stop().await.unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!(count(&mut PgConnection::connect(&url).await.unwrap()).await, 3);
    PgConnection::connect(&postgres.url("two")).await.unwrap();
}

#[tokio::test]
async fn postgres_is_durable_private_and_never_root() {
    let folder = TemporaryFolder::create().unwrap();
    let postgres = postgres(folder.path()).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url("one")).await.unwrap();
    for (name, value) in [("fsync", "on"), ("synchronous_commit", "on"), ("listen_addresses", "127.0.0.1"), ("max_connections", "300")] {
        let row = sqlx::query("select current_setting($1)").bind(name).fetch_one(&mut connection).await.unwrap();
        assert_eq!(row.get::<String, _>(0), value, "{name}");
    }
    for user in ["souk", "postgres"] {
        let stranger = format!("postgres://{user}:guessed@127.0.0.1:{}/one?sslmode=disable", postgres.port());
        let refused = PgConnection::connect(&stranger).await.unwrap_err();
        assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("28P01"), "{refused}");
    }
    assert_eq!(postgres.runs_as().is_some(), nix::unistd::geteuid().is_root());
}

#[tokio::test]
async fn images_of_pages_are_compressed_by_the_best_the_server_was_built_with() {
    let folder = TemporaryFolder::create().unwrap();
    let mut postgres = postgres(folder.path()).await.unwrap();
    // Where it was set while the server ran it is there at the next start.
    postgres.stop().await.unwrap();
    postgres.start_again().await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url("one")).await.unwrap();
    let row = sqlx::query("select 'lz4' = any(enumvals), setting from pg_settings where name = 'wal_compression'");
    let row = row.fetch_one(&mut connection).await.unwrap();
    let best = if row.get(0) { "lz4" } else { "pglz" };
    assert_eq!(row.get::<String, _>(1), best);
}

#[tokio::test]
async fn a_lock_file_that_names_a_living_stranger_does_not_stop_postgres() {
    let folder = TemporaryFolder::create().unwrap();
    let mut first = postgres(folder.path()).await.unwrap();
    first.kill9().await.unwrap();
    let lock = first.data_folder().join("cluster/postmaster.pid");
    let stale = fs::read_to_string(&lock).unwrap();
    let owner_of_data = fs::metadata(first.data_folder().join("cluster")).unwrap();
    let stranger = std::os::unix::fs::MetadataExt::uid(&owner_of_data);
    let mut sleep = Command::new("sleep");
    std::os::unix::process::CommandExt::uid(&mut sleep, stranger);
    let mut sleep = sleep.arg("60").spawn().unwrap();
    let rest = stale.split_once('\n').unwrap().1;
    fs::write(&lock, format!("{}\n{rest}", sleep.id())).unwrap();
    first.start_again().await.unwrap();
    assert_eq!(sleep.try_wait().unwrap(), None, "the stranger lives");
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}

#[tokio::test]
async fn nats_comes_back_on_its_port_with_or_without_its_streams() {
    let folder = TemporaryFolder::create().unwrap();
    let mut nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.unwrap();
    let port = nats.port();
    let jetstream = |url: String| async move { jetstream::new(async_nats::connect(url).await.unwrap()) };
    let wanted = || stream::Config { name: "s".into(), subjects: vec!["s".into()], max_bytes: 2 << 30, ..Default::default() };
    let context = jetstream(nats.url()).await;
    for number in 0..64 {
        // Every partition of an installation may keep two gigabytes, whatever the disk has.
        let config = stream::Config { name: format!("s{number}"), subjects: vec![format!("s{number}")], ..wanted() };
        context.create_stream(config).await.unwrap();
    }
    let large = vec![7_u8; souk_devstack::MAX_PAYLOAD - 1024];
    context.publish("s0", large.into()).await.unwrap().await.unwrap();

    nats.kill9().await.unwrap();
    nats.start_again().await.unwrap();
    assert_eq!(nats.port(), port);
    let mut stream = jetstream(nats.url()).await.get_stream("s0").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);

    nats.stop().await.unwrap();
    nats.wipe().unwrap();
    nats.start_again().await.unwrap();
    assert!(jetstream(nats.url()).await.get_stream("s0").await.is_err());
}

/// Not a test of its own: the process that the test below kills.
#[tokio::test]
#[ignore = "started by another test, in a process of its own"]
async fn hold_a_stack_until_killed() {
    let folder = env::var_os("SOUK_TEST_FOLDER").expect("the test that starts this gives it a folder");
    let folder = Path::new(&folder);
    let stack = Stack::start(StackOptions::new(folder.join("data"), folder.join("logs"))).await.unwrap();
    stack.run_file().unwrap().write(&folder.join("run.json")).unwrap();
    std::future::pending::<()>().await;
}

async fn hold_in_another_process(folder: &Path) -> (std::process::Child, RunFile) {
    let this = env::current_exe().unwrap();
    let mut holder = Command::new(this)
        .args(["--exact", "hold_a_stack_until_killed", "--ignored", "--nocapture"])
        .env("SOUK_TEST_FOLDER", folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match RunFile::read(&folder.join("run.json")).unwrap() {
            Some(file) if file.souk.pid == holder.id() => return (holder, file),
            _ => assert!(holder.try_wait().unwrap().is_none() && Instant::now() < deadline, "the stack does not start"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn gone(process: &ProcessIdentity) -> bool {
    let deadline = Instant::now() + Duration::from_secs(15);
    while process.is_alive() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !process.is_alive()
}

#[tokio::test]
async fn nothing_outlives_a_killed_process_and_the_next_start_takes_over_its_data() {
    let folder = TemporaryFolder::create().unwrap();
    for _ in 0..2 {
        let (mut holder, file) = hold_in_another_process(folder.path()).await;
        let second = Stack::start(StackOptions::new(folder.path().join("data"), folder.path().join("logs"))).await;
        assert!(second.unwrap_err().to_string().contains("in use"));
        holder.kill().unwrap();
        holder.wait().unwrap();
        if cfg!(target_os = "linux") {
            assert!(gone(&file.postgres.process).await, "postgres");
            assert!(gone(&file.nats.process).await, "nats-server");
        }
    }
    // Servers the kernel did not end: they are started outside of any parent that could take them along.
    let data = folder.path().join("data");
    let left = leave_behind(&data).await;
    let stack = Stack::start(StackOptions::new(&data, folder.path().join("logs"))).await.unwrap();
    assert!(!left.is_alive());
    PgConnection::connect(&stack.write_databases()[0].url).await.unwrap();
}

/// Starts the Postgres of a data folder once more, by hand, and leaves it to the init process.
async fn leave_behind(data: &Path) -> ProcessIdentity {
    let (mut holder, file) = hold_in_another_process(data.parent().unwrap()).await;
    let pid = file.postgres.process.pid;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let words: Vec<String> = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let user = std::os::unix::fs::MetadataExt::uid(&fs::metadata(data.join("postgres/cluster")).unwrap());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(gone(&file.postgres.process).await);
    let mut command = Command::new(&words[0]);
    std::os::unix::process::CommandExt::uid(&mut command, user);
    let program = words.len() - 1;
    let mut by_hand = command.args(&words[1..program]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while PgConnection::connect(&file.write_databases[0].url).await.is_err() {
        assert!(by_hand.try_wait().unwrap().is_none() && Instant::now() < deadline, "postgres does not start by hand");
    }
    let identity = ProcessIdentity::of(by_hand.id()).unwrap();
    std::thread::spawn(move || by_hand.wait());
    assert!(identity.is_alive() && identity.signal(Signal::SIGCONT).is_ok());
    identity
}

/// The numbers a server shows.
async fn shown(server: &Postgres) -> Vec<i32> {
    let mut connection = server.connect("souk_read_1").await.unwrap();
    sqlx::query_scalar("select n from kept order by n").fetch_all(&mut connection).await.unwrap()
}

async fn keep(stack: &Stack, number: i32) {
    let mut connection = PgConnection::connect(&stack.read_databases()[0].url).await.unwrap();
    sqlx::query("insert into kept values ($1)").bind(number).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn standbys_show_what_the_primary_wrote_as_far_as_they_replayed_it() {
    let mut stack = Stack::temporary(|options| options.read_replicas = Some(2)).await.unwrap();
    let settings: toml::Table = fs::read_to_string(stack.settings_file()).unwrap().parse().unwrap();
    assert_eq!(settings["read"]["databases"][0]["replicas"].as_array().unwrap().len(), 2);
    assert!(settings["write"]["databases"][0].get("replicas").is_none());
    let mut primary = stack.postgres.connect("souk_read_1").await.unwrap();
    sqlx::raw_sql("create table kept (n int)").execute(&mut primary).await.unwrap();
    keep(&stack, 1).await;
    for standby in &stack.standbys {
        standby.catch_up_with(&stack.postgres).await.unwrap();
        assert_eq!(shown(&standby.server).await, [1]);
    }

    // One lags, the other does not.
    stack.standbys[0].pause_replay().await.unwrap();
    keep(&stack, 2).await;
    stack.standbys[1].catch_up_with(&stack.postgres).await.unwrap();
    assert_eq!((shown(&stack.standbys[0].server).await, shown(&stack.standbys[1].server).await), (vec![1], vec![1, 2]));
    stack.standbys[0].resume_replay().await.unwrap();
    stack.standbys[0].catch_up_with(&stack.postgres).await.unwrap();
    assert_eq!(shown(&stack.standbys[0].server).await, [1, 2]);

    // What they miss while they, or the primary, are away arrives later.
    stack.standbys[0].server.kill9().await.unwrap();
    keep(&stack, 3).await;
    stack.postgres.kill9().await.unwrap();
    assert_eq!(shown(&stack.standbys[1].server).await[..2], [1, 2], "reads need no primary");
    stack.postgres.start_again().await.unwrap();
    stack.standbys[0].server.start_again().await.unwrap();
    for standby in &stack.standbys {
        standby.catch_up_with(&stack.postgres).await.unwrap();
        assert_eq!(shown(&standby.server).await, [1, 2, 3]);
    }

    let refused = PgConnection::connect(&stack.read_databases()[0].replicas[0]).await.unwrap().execute("insert into kept values (4)").await;
    assert_eq!(refused.unwrap_err().as_database_error().and_then(|error| error.code()).as_deref(), Some("25006"), "it is read-only");
    stack.standbys[0].promote().await.unwrap();
    PgConnection::connect(&stack.read_databases()[0].replicas[0]).await.unwrap().execute("insert into kept values (4)").await.unwrap();
}

#[tokio::test]
async fn standbys_may_be_more_or_fewer_with_every_start_and_a_promoted_one_follows_again() {
    let folder = TemporaryFolder::create().unwrap();
    let start = |read_replicas| {
        let mut options = StackOptions::new(folder.path().join("data"), folder.path().join("logs"));
        options.read_replicas = read_replicas;
        Stack::start(options)
    };
    let mut stack = start(Some(1)).await.unwrap();
    sqlx::raw_sql("create table kept (n int)").execute(&mut stack.postgres.connect("souk_read_1").await.unwrap()).await.unwrap();
    stack.standbys[0].promote().await.unwrap();
    stack.stop().await.unwrap();
    drop(stack);
    for (asked, found) in [(None, 1), (Some(2), 2), (Some(0), 0)] {
        let mut stack = start(asked).await.unwrap();
        assert_eq!(stack.standbys.len(), found);
        keep(&stack, 1).await;
        for standby in &stack.standbys {
            standby.catch_up_with(&stack.postgres).await.unwrap();
            assert_eq!(shown(&standby.server).await, shown(&stack.postgres).await);
        }
        let mut connection = stack.postgres.connect("postgres").await.unwrap();
        let slots: i64 = sqlx::query_scalar("select count(*) from pg_replication_slots").fetch_one(&mut connection).await.unwrap();
        assert_eq!(slots, found as i64, "a slot nobody reads keeps log for ever");
        stack.stop().await.unwrap();
    }
    assert!(!folder.path().join("data/standby-1").exists());
}

#[tokio::test]
async fn a_stack_has_the_shards_asked_for_and_settings_that_name_them() {
    let stack = Stack::temporary(|options| {
        (options.write_shards, options.read_shards, options.partitions) = (Some(2), Some(3), Some(8));
        options.set("command.payment_window", "2s");
    })
    .await
    .unwrap();
    assert_eq!((stack.write_databases().len(), stack.read_databases().len()), (2, 3));
    for database in stack.write_databases().iter().chain(&stack.read_databases()) {
        PgConnection::connect(&database.url).await.unwrap();
    }
    let settings: toml::Table = fs::read_to_string(stack.settings_file()).unwrap().parse().unwrap();
    assert_eq!(settings["installation"]["partitions"].as_integer(), Some(8));
    assert_eq!(settings["command"]["payment_window"].as_str(), Some("2s"));
    assert_eq!(settings["write"]["databases"][1]["name"].as_str(), Some("write-2"));
    assert_eq!(settings["listen"]["query"].as_str(), Some(format!("127.0.0.1:{}", stack.port("query")).as_str()));
    let folder = stack.data().to_owned();
    drop(stack);
    assert!(!folder.exists(), "a temporary stack leaves nothing behind");
}
