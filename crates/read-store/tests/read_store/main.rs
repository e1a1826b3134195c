//! The laws of the read store on real Postgres, and on the memory adapter where they are the port's.

mod laws;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm_migration::{
    MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait,
    sea_orm::{
        ConnectionTrait, DbErr, DynIden,
        sea_query::{Alias, IntoIden},
    },
};
use souk_devstack::{Postgres, PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{Epoch, LogHash, LogId, Partition, Position, Region, UnixMillis};
use souk_read_store::{
    Access, Advance, Batch, Checkpoint, Column, DatabaseConfig, Demand, Installation, Kind, MemoryViews, Parked, PointView, PostgresViews,
    ReadStore, ReadStoreError, Row, RowKey, Table, Value, ViewStore,
};

static THING: Table = Table {
    name: "thing_view",
    key: &[Column::new("key", Kind::Text)],
    columns: &[
        Column::new("version", Kind::Big),
        Column::new("stale_since", Kind::Big),
        Column::new("parked_at", Kind::Big),
        Column::new("updated_ms", Kind::Big),
        Column::new("body", Kind::Bytes),
        Column::new("state", Kind::Small),
        Column::new("tags", Kind::Texts),
        Column::new("written_ms", Kind::WrittenMs),
    ],
};
static TALLY: Table = Table {
    name: "tally",
    key: &[Column::new("day", Kind::Int), Column::new("name", Kind::Text)],
    columns: &[Column::new("units", Kind::Sum)],
};
static TABLES: &[&Table] = &[&THING, &TALLY];

struct Things;

impl MigratorTrait for Things {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(CreateThings)]
    }

    fn migration_table_name() -> DynIden {
        Alias::new("things_migration").into_iden()
    }
}

struct CreateThings;

impl MigrationName for CreateThings {
    fn name(&self) -> &str {
        "m0001_things"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateThings {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = r#"
            create table thing_view (region smallint, partition int, key text collate "C", version bigint not null, position bigint not null,
                revision int not null, stale_since bigint, parked_at bigint, updated_ms bigint not null, body bytea not null,
                state smallint not null, tags text[] not null, written_ms bigint not null, primary key (region, partition, key));
            create table tally (region smallint, partition int, day int, name text collate "C", position bigint not null,
                revision int not null, units bigint not null, primary key (region, partition, day, name));"#;
        manager.get_connection().execute_unprepared(tables).await.map(|_| ())
    }
}

const HERE: Installation = Installation { region: Region(1), partitions: 4 };
/// Claims with a patience of nothing: whoever holds a log counts as dead.
const ME: &str = "me";
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

fn thing(partition: u16, key: &str, position: u64, body: &'static [u8]) -> Row {
    let tags =
        vec!["plain".to_owned(), "with \"quotes\" and \\".to_owned(), "a,b {c} NULL ".to_owned(), "NULL".to_owned(), "ünï".to_owned()];
    Row {
        key: RowKey { log: log(partition), key: vec![Value::from(key)] },
        position: Position(position),
        revision: 3,
        values: vec![
            Value::Int(position as i64),
            Value::Null,
            Value::Null,
            Value::Int(7),
            Value::Bytes(body.into()),
            Value::Int(2),
            Value::Texts(tags),
        ],
    }
}

fn tally(partition: u16, name: &str, position: u64, units: i64) -> Row {
    let key = RowKey { log: log(partition), key: vec![Value::Int(-3), Value::from(name)] };
    Row { key, position: Position(position), revision: 1, values: vec![Value::Int(units)] }
}

/// The step of `checkpoint` to `position`, and rows for it.
fn step(checkpoint: &Checkpoint, position: u64) -> Advance {
    Advance {
        log: checkpoint.log,
        fence: checkpoint.fence,
        from_epoch: checkpoint.epoch,
        from_position: checkpoint.position,
        epoch: Epoch(9),
        position: Position(position),
        hash: LogHash([position as u8; 16]),
        whole: false,
    }
}

fn batch(advances: impl Into<Vec<Advance>>, things: impl Into<Vec<Row>>, tallies: impl Into<Vec<Row>>) -> Batch {
    let rows = [(THING.name, things.into()), (TALLY.name, tallies.into())].into();
    Batch { advances: advances.into(), rows, revision: 5, now: NOW, ..Batch::default() }
}

async fn stored(store: &dyn ViewStore, table: &'static Table, partition: u16) -> Vec<Row> {
    store.scan(table, log(partition), None, 1000).await.unwrap().rows
}

async fn checkpoint(store: &dyn ViewStore, partition: u16) -> Checkpoint {
    store.checkpoints(&[log(partition)]).await.unwrap()[0]
}

#[tokio::test]
async fn memory_keeps_the_laws() {
    laws::the_laws_of_the_port(&MemoryViews::new((0..4).map(log), TABLES)).await;
}

struct Server {
    _folder: TemporaryFolder,
    postgres: Postgres,
}

impl Server {
    async fn start() -> Self {
        let folder = TemporaryFolder::create().unwrap();
        let postgres = Postgres::start(PostgresOptions::new(folder.path().join("postgres"))).await.unwrap();
        Self { _folder: folder, postgres }
    }

    async fn databases(&self, names: &[&str]) -> Vec<DatabaseConfig> {
        let mut configs = Vec::new();
        for name in names {
            self.postgres.create_database(name).await.unwrap();
            configs.push(DatabaseConfig::new(*name, self.postgres.url(name), 4));
        }
        configs
    }
}

async fn install(configs: &[DatabaseConfig]) -> Result<ReadStore, ReadStoreError> {
    ReadStore::install::<Things>(configs, HERE, NOW).await
}

/// One server for all of it: a start costs more than the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_laws() {
    let server = Server::start().await;
    let store = install(&server.databases(&["laws"]).await).await.unwrap();
    laws::the_laws_of_the_port(&PostgresViews::new(store.databases()[0].clone(), TABLES)).await;
    a_row_is_read_with_the_checkpoint_of_its_snapshot(&server).await;
    installing_twice_at_once_is_installing_once(&server).await;
    placement_is_made_once_and_databases_know_where_they_belong(&server).await;
    writers_that_race_never_mix(&server).await;
}

async fn a_row_is_read_with_the_checkpoint_of_its_snapshot(server: &Server) {
    let configs = server.databases(&["points_a", "points_b"]).await;
    let store = install(&configs).await.unwrap();
    let view = PointView::new(&THING);
    for partition in [0, 1] {
        let database = store.database_of(log(partition)).unwrap().clone();
        let views = PostgresViews::new(database, TABLES);
        let mine = views.claim(&[log(partition)], ME, Duration::ZERO, NOW).await.unwrap()[0];
        views.write(&batch([step(&mine, 2)], [thing(partition, "a", 2, b"body")], [])).await.unwrap();
    }
    let readers = ReadStore::open(&configs, Access::Read, HERE).await.unwrap();
    let found = readers.read_row(&view, log(0), "a", &Demand::default()).await.unwrap();
    let row = found.row.clone().unwrap();
    assert_eq!(
        (row.version.0, row.position, row.revision, row.updated, &*row.body),
        (2, Position(2), 3, UnixMillis(7), b"body".as_slice())
    );
    assert_eq!(found.parked, None);
    let as_of = found.as_of;
    assert_eq!((as_of.position.log, as_of.position.epoch, as_of.position.position), (log(0), Epoch(9), Position(2)));
    assert_eq!((as_of.written, as_of.revision), (NOW, 5));
    let missing = readers.read_row(&view, log(2), "a", &Demand::default()).await.unwrap();
    assert_eq!((missing.row, missing.as_of.position.position), (None, Position(0)));
    let views = PostgresViews::new(store.database_of(log(2)).unwrap().clone(), TABLES);
    let mine = views.claim(&[log(2)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    let mut marker = laws::marked(2, "b", 0, 2);
    marker.values[0] = Value::Int(0);
    views.write(&batch([step(&mine, 3)], [laws::marked(2, "a", 1, 3), marker], [])).await.unwrap();
    for (key, is_row, at) in [("a", true, 3), ("b", false, 2)] {
        let read = readers.read_row(&view, log(2), key, &Demand::default()).await.unwrap();
        assert_eq!((read.row.is_some(), read.parked), (is_row, Some(Parked { at: Position(at), since: NOW })));
    }
    let many = readers.read_rows(&view, &[(log(1), "a"), (log(0), "b"), (log(0), "a"), (log(3), "a")], &Demand::default()).await.unwrap();
    let seen: Vec<_> = many.iter().map(|read| (read.as_of.position.log, read.row.is_some())).collect();
    assert_eq!(seen, [(log(1), true), (log(0), false), (log(0), true), (log(3), false)]);
    assert!(matches!(readers.read_row(&view, log(7), "a", &Demand::default()).await, Err(ReadStoreError::NotPlaced(_))));
    let refused = sqlx::query("delete from thing_view").execute(readers.databases()[0].pool()).await.unwrap_err();
    assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("25006"), "queries cannot write");
    let written: i64 = sqlx::query_scalar("select written_ms from thing_view").fetch_one(store.databases()[0].pool()).await.unwrap();
    assert_eq!(written, NOW.0);

    // Every snapshot tells whether its rows are being made anew.
    let views = PostgresViews::new(store.database_of(log(1)).unwrap().clone(), TABLES);
    let mine = views.claim(&[log(1)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    assert!(views.rewind(log(1), mine.fence, NOW).await.unwrap());
    let emptied = readers.read_row(&view, log(1), "a", &Demand::default()).await.unwrap();
    assert_eq!((emptied.row, emptied.as_of.rebuilding, as_of.rebuilding), (None, true, false));
    let many = readers.read_rows(&view, &[(log(1), "a"), (log(0), "a")], &Demand::default()).await.unwrap();
    assert_eq!(many.iter().map(|read| read.as_of.rebuilding).collect::<Vec<_>>(), [true, false]);
    let stored = store.checkpoints(store.database_of(log(1)).unwrap()).await.unwrap();
    assert_eq!(
        stored.iter().map(|checkpoint| (checkpoint.log, checkpoint.rebuilding)).collect::<Vec<_>>(),
        [(log(1), true), (log(3), false)]
    );
}

async fn installing_twice_at_once_is_installing_once(server: &Server) {
    let configs = server.databases(&["twice_a", "twice_b"]).await;
    let opened = ReadStore::open(&configs, Access::Read, HERE).await;
    assert!(matches!(&opened, Err(error @ ReadStoreError::NotInstalled(_)) if error.retryable()), "{opened:?}");
    let attempts = futures::future::join_all((0..8).map(|_| install(&configs))).await;
    for attempt in &attempts {
        assert_eq!(attempt.as_ref().unwrap().logs().count(), 4);
    }
    let pool = attempts[0].as_ref().unwrap().databases()[0].pool();
    // Between the tables and the last log's place or checkpoint, readers must wait: they would take logs for missing.
    for half_done in ["delete from read_checkpoint where partition = 2", "delete from read_placement where partition = 3"] {
        sqlx::query(half_done).execute(pool).await.unwrap();
        let opened = ReadStore::open(&configs, Access::Read, HERE).await;
        assert!(matches!(&opened, Err(error @ ReadStoreError::NotInstalled(_)) if error.retryable()), "{half_done}: {opened:?}");
        install(&configs).await.unwrap();
        ReadStore::open(&configs, Access::Read, HERE).await.unwrap();
    }
    let applied: i64 = sqlx::query_scalar("select count(*) from things_migration").fetch_one(pool).await.unwrap();
    let ids: i64 = sqlx::query_scalar("select count(*) from read_installation").fetch_one(pool).await.unwrap();
    assert_eq!((applied, ids), (1, 1));
}

async fn placement_is_made_once_and_databases_know_where_they_belong(server: &Server) {
    let configs = server.databases(&["place_a", "place_b", "place_c"]).await;
    let store = install(&configs[..2]).await.unwrap();
    assert_eq!((store.logs_of("place_a"), store.logs_of("place_b")), (vec![log(0), log(2)], vec![log(1), log(3)]));
    // A checkpoint survives another installation, and a new database stays empty.
    let views = PostgresViews::new(store.databases()[0].clone(), TABLES);
    let mine = views.claim(&[log(0)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    views.write(&batch([step(&mine, 3)], [], [])).await.unwrap();
    let grown = install(&configs).await.unwrap();
    assert_eq!((grown.logs_of("place_a"), grown.logs_of("place_c")), (vec![log(0), log(2)], vec![]));
    assert_eq!(grown.placement_version(), 1);
    assert_eq!(grown.checkpoint(log(0)).await.unwrap().position, Position(3));
    let checkpoints = grown.checkpoints(&grown.databases()[0]).await.unwrap();
    assert_eq!(checkpoints.iter().map(|checkpoint| checkpoint.log).collect::<Vec<_>>(), [log(0), log(2)]);

    let unknown = ReadStore::open(&configs[..1], Access::Read, HERE).await;
    assert!(matches!(&unknown, Err(ReadStoreError::UnknownDatabase(name)) if name == "place_b"), "{unknown:?}");
    let more = Installation { partitions: 8, ..HERE };
    let counted = ReadStore::install::<Things>(&configs, more, NOW).await;
    assert!(matches!(counted, Err(ReadStoreError::PartitionCount { stored: 4, configured: 8 })), "{counted:?}");
    let elsewhere = Installation { region: Region(2), ..HERE };
    let foreign = ReadStore::open(&configs, Access::Read, elsewhere).await;
    assert!(matches!(foreign, Err(ReadStoreError::WrongRegion { stored: Region(1), .. })), "{foreign:?}");
    let others = server.databases(&["others"]).await;
    install(&others).await.unwrap();
    let mixed = ReadStore::open(&[configs[0].clone(), configs[1].clone(), others[0].clone()], Access::Read, HERE).await;
    assert!(matches!(&mixed, Err(ReadStoreError::ForeignDatabase { database, .. }) if database == "others"), "{mixed:?}");
    assert!(matches!(install(&[]).await, Err(ReadStoreError::BadConfiguration)));
    assert!(matches!(install(&[configs[0].clone(), configs[0].clone()]).await, Err(ReadStoreError::BadConfiguration)));
}

/// Writers that claim the same log from each other and write as fast as they can: each position is written by exactly one
/// of them, with its own row, and the sum counts every position once.
async fn writers_that_race_never_mix(server: &Server) {
    const LAST: u64 = 300;
    let store = install(&server.databases(&["races"]).await).await.unwrap();
    let views: Arc<dyn ViewStore> = Arc::new(PostgresViews::new(store.databases()[0].clone(), TABLES));
    let (won, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers = (0..4).map(|_| {
        let (views, won, lost) = (views.clone(), won.clone(), lost.clone());
        tokio::spawn(async move {
            loop {
                let mut mine = views.claim(&[log(1), log(2)], ME, Duration::ZERO, NOW).await.unwrap();
                loop {
                    if mine.iter().all(|checkpoint| checkpoint.position.0 >= LAST) {
                        return;
                    }
                    let advances: Vec<_> = mine.iter().map(|checkpoint| step(checkpoint, checkpoint.position.0 + 1)).collect();
                    let tallies: Vec<_> =
                        advances.iter().map(|advance| tally(advance.log.partition.0, "n", advance.position.0, 1)).collect();
                    let thing_of =
                        |advance: &Advance| thing(advance.log.partition.0, &advance.position.to_string(), advance.position.0, b"x");
                    let things: Vec<_> = advances.iter().map(thing_of).collect();
                    let written = views.write(&batch(advances.clone(), things, tallies)).await.unwrap();
                    won.fetch_add((advances.len() - written.lost.len()) as u64, Ordering::Relaxed);
                    lost.fetch_add(written.lost.len() as u64, Ordering::Relaxed);
                    if !written.lost.is_empty() {
                        break;
                    }
                    for (checkpoint, advance) in mine.iter_mut().zip(&advances) {
                        (checkpoint.epoch, checkpoint.position) = (advance.epoch, advance.position);
                    }
                }
            }
        })
    });
    futures::future::join_all(writers).await.into_iter().for_each(|writer| writer.unwrap());
    let mut positions = 0;
    for partition in [1, 2] {
        let last = checkpoint(&*views, partition).await.position.0;
        assert_eq!(stored(&*views, &TALLY, partition).await, [tally(partition, "n", last, last as i64)]);
        assert_eq!(stored(&*views, &THING, partition).await.len() as u64, last);
        positions += last;
    }
    assert_eq!(won.load(Ordering::Relaxed), positions);
    assert!(lost.load(Ordering::Relaxed) > 0, "they did race");
}
