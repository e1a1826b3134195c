mod load;
mod secret;
mod validate;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::Deserialize;
use souk_event_sourcing::{Region, Site, TokenKey, Topology};

pub use load::ConfigError;
pub use secret::Secret;

/// Everything that can be configured. Read from one TOML file and from the environment, where
/// `SOUK_grpc__default_deadline=5s` sets `default_deadline` in `[grpc]`. Unknown keys are refused; one file serves all
/// processes of an installation. Durations are written as `250ms`, `5s`, `15m`, `7days`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub installation: InstallationSettings,
    #[serde(default)]
    pub process: ProcessSettings,
    #[serde(default)]
    pub listen: ListenSettings,
    #[serde(default)]
    pub write: DatabasesSettings,
    #[serde(default)]
    pub read: DatabasesSettings,
    #[serde(default)]
    pub nats: NatsSettings,
    #[serde(default)]
    pub grpc: GrpcSettings,
    #[serde(default)]
    pub peers: PeerSettings,
    #[serde(default)]
    pub telemetry: TelemetrySettings,
    #[serde(default)]
    pub command: CommandSettings,
    #[serde(default)]
    pub query: QuerySettings,
    #[serde(default)]
    pub projector: ProjectorSettings,
    #[serde(default)]
    pub saga: SagaSettings,
    #[serde(default)]
    pub replicator: ReplicatorSettings,
}

/// What all processes of an installation agree on for ever.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallationSettings {
    /// Label of this region; may be renamed.
    #[serde(default = "local")]
    pub region: String,
    /// Number of this region, stored in every key.
    #[serde(default = "one")]
    pub region_number: u16,
    /// Partitions per region, fixed at installation.
    #[serde(default = "sixty_four")]
    pub partitions: u16,
    /// 64 hexadecimal digits; signs consistency and page tokens.
    pub token_key: Secret,
}

impl InstallationSettings {
    pub fn region(&self) -> Region {
        Region(self.region_number)
    }

    /// What holds as long as this region knows of no other.
    pub fn alone(&self) -> Topology {
        Topology::alone(self.region(), &self.region, self.partitions)
    }

    pub fn token_key(&self) -> TokenKey {
        TokenKey::from_hex(&self.token_key).expect("checked when the settings were loaded")
    }
}

fn local() -> String {
    "local".into()
}

fn one() -> u16 {
    1
}

fn sixty_four() -> u16 {
    64
}

/// Declares a settings section: every field has a default, unknown keys are refused.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn loopback_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

section! {
    /// How a process is named and how it ends.
    ProcessSettings {
        /// What tells this process from other replicas of its service; the process id when empty. A process that is started
        /// again under the same name takes its work up at once; no two that run may share one.
        replica: String = String::new(),
        /// Host name or address under which other processes reach this one, in Kubernetes the pod's; where it listens when
        /// empty.
        advertise_host: String = String::new(),
        /// Whether a service brings its tables up to date when it starts. If not, `souk migrate` does, and a service that needs
        /// more than it finds is not ready, says what is missing and waits.
        migrate: bool = true,
        /// Time between "not serving" and the closed door, so that load balancers notice.
        #[serde(with = "humantime_serde")]
        shutdown_pause: Duration = Duration::ZERO,
        /// Longest time for draining; what is left then is cut off.
        #[serde(with = "humantime_serde")]
        shutdown_grace: Duration = seconds(20),
        /// Threads that do the work; one for each core that the process may use when 0. A container's limit of CPU counts there, rounded
        /// down; what it asks for does not. Where processes share a machine, fewer are better: a thread that is woken to help costs more
        /// than its help is worth.
        threads: usize = 0,
        /// For tests: by how much this process takes the time to be later than it is.
        clock_shift_ms: i64 = 0,
    }
}

section! {
    /// Where each service listens: public gRPC, internal gRPC, and HTTP for operators.
    ListenSettings {
        command: SocketAddr = loopback(50051),
        command_internal: SocketAddr = loopback(50061),
        command_ops: SocketAddr = loopback(50071),
        query: SocketAddr = loopback(50052),
        query_internal: SocketAddr = loopback(50062),
        query_ops: SocketAddr = loopback(50072),
        projector_internal: SocketAddr = loopback(50063),
        projector_ops: SocketAddr = loopback(50073),
        saga_internal: SocketAddr = loopback(50064),
        saga_ops: SocketAddr = loopback(50074),
        replicator_internal: SocketAddr = loopback(50065),
        replicator_ops: SocketAddr = loopback(50075),
    }
}

section! {
    /// The databases of one side. Which partition lies where is a table in them.
    DatabasesSettings {
        databases: Vec<Database> = Vec::new(),
    }
}

/// One database of the write or the read side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Name in the placement table; stays when the url changes.
    pub name: String,
    /// `postgres://user:password@host:port/database`. A read database may be reached through a pooler in transaction mode, such as
    /// PgBouncer 1.21 or later with `max_prepared_statements` above zero and `ignore_startup_parameters = options,
    /// extra_float_digits`; then give its role what the ignored options say: `enable_seqscan = off`, `jit = off` and, for the
    /// projector, `synchronous_commit = off`. A write database is named here past any pooler.
    pub url: Secret,
    /// A write database through such a pooler: all ordinary queries take this way. Migrations and each lane's append go past it by
    /// `url`: a migration holds a lock for a session, and an append that lost its connection must find out what became of it
    /// from the backend that had it.
    #[serde(default)]
    pub pooled_url: Option<Secret>,
    /// The same database on streaming standbys, which may lag: the query service reads from them what they have. The read side
    /// alone has them.
    #[serde(default)]
    pub replicas: Vec<Secret>,
    #[serde(default = "ten")]
    pub max_connections: u32,
}

fn ten() -> u32 {
    10
}

section! {
    NatsSettings {
        /// `nats://user:password@host:port`, several separated by commas.
        url: Secret = Secret::default(),
        /// First part of every subject and JetStream stream name.
        prefix: String = "souk".into(),
        /// What JetStream keeps per partition; older events are read from Postgres.
        #[serde(with = "humantime_serde")]
        stream_max_age: Duration = seconds(24 * 3600),
        stream_max_bytes: u64 = 2 * 1024 * 1024 * 1024,
        stream_replicas: usize = 1,
    }
}

section! {
    /// Limits of every gRPC server. None of them is unlimited.
    GrpcSettings {
        /// Calls in flight on one connection.
        max_concurrent_streams: u32 = 256,
        /// Streams reset for our own errors before the connection is closed (rapid reset).
        max_local_error_resets: usize = 1024,
        /// Per message, both ways.
        max_message_bytes: usize = MIB,
        max_header_list_bytes: u32 = 16 * KIB as u32,
        /// A connection is closed that has not come as far as the head of a first request by then.
        #[serde(with = "humantime_serde")]
        first_request_timeout: Duration = seconds(10),
        /// A reply that its reader leaves untaken for this long is cut off: the stream is reset.
        #[serde(with = "humantime_serde")]
        reply_patience: Duration = seconds(30),
        #[serde(with = "humantime_serde")]
        keepalive_interval: Duration = seconds(20),
        #[serde(with = "humantime_serde")]
        keepalive_timeout: Duration = seconds(10),
        /// A connection is asked to close at this age, so that callers find new replicas.
        #[serde(with = "humantime_serde")]
        max_connection_age: Duration = seconds(30 * 60),
        /// Share of the age added or taken at random per connection.
        connection_age_jitter: f64 = 0.1,
        max_connections: usize = 4096,
        /// Unary calls in flight in one server; more are shed with RESOURCE_EXHAUSTED.
        max_concurrent_calls: usize = 4096,
        /// Open streaming calls in one server.
        max_open_streams: usize = 1024,
        /// Deadline of a unary call that brings none.
        #[serde(with = "humantime_serde")]
        default_deadline: Duration = seconds(10),
        /// Longer deadlines of unary calls are cut to this.
        #[serde(with = "humantime_serde")]
        max_deadline: Duration = seconds(60),
        /// RetryInfo of a call that was shed.
        #[serde(with = "humantime_serde")]
        shed_retry_after: Duration = ms(100),
    }
}

section! {
    /// Where the other services are: one url that leads to all replicas, or their urls separated by commas.
    PeerSettings {
        command: String = loopback_url(50051),
        command_internal: String = loopback_url(50061),
        query: String = loopback_url(50052),
        query_internal: String = loopback_url(50062),
        projector_internal: String = loopback_url(50063),
        saga_internal: String = loopback_url(50064),
        replicator_internal: String = loopback_url(50065),
        /// How this region reaches the command services of others, by the name of the region, where that is not as the topology has it.
        regions: BTreeMap<String, String> = BTreeMap::new(),
    }
}

impl PeerSettings {
    /// Urls of the internal port of another region's command service.
    pub fn ways_to<'a>(&'a self, site: &'a Site) -> Vec<&'a str> {
        self.regions.get(&site.name).unwrap_or(&site.command_internal).split(',').map(str::trim).collect()
    }
}

/// Shape of the log lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

section! {
    TelemetrySettings {
        log_format: LogFormat = LogFormat::Human,
        /// Directives as of tracing's EnvFilter: `info,souk_query=debug`.
        log_filter: String = "info".into(),
        /// Where traces go (OTLP over gRPC), as `http://127.0.0.1:4317`; no traces are made without it.
        otlp_endpoint: Option<String> = None,
        /// Share of traces kept that begin here; a caller's decision is followed.
        trace_sample: f64 = 1.0,
    }
}

section! {
    CommandSettings {
        /// A command that would wait longer in its lane's queue is refused with RESOURCE_EXHAUSTED.
        #[serde(with = "humantime_serde")]
        queue_wait: Duration = ms(500),
        /// Commands waiting per lane at most, however fast it is: a bound of memory.
        queue_length: usize = 4096,
        /// Bounds of one batch.
        batch_commands: usize = 512,
        batch_bytes: usize = 2 * MIB,
        /// Least time from one append of a lane to the next while commands come in faster than one at a time, but too slowly to
        /// share appends by themselves: those that arrive in between share one. A lonely command is appended at once.
        #[serde(with = "humantime_serde")]
        batch_interval: Duration = ms(5),
        /// Attempts to append a command that met a stale version before it is ABORTED.
        append_retries: u32 = 8,
        /// Entities held in memory per process.
        entity_cache_entries: u64 = 100_000,
        /// A snapshot is written when a stream grew by this many events.
        snapshot_every: u64 = 200,
        /// Events kept in memory for the relay, per partition.
        ring_capacity: usize = 4096,
        /// Unacknowledged publishes per connection.
        relay_window: usize = 512,
        #[serde(with = "humantime_serde")]
        relay_check_interval: Duration = seconds(5),
        #[serde(with = "humantime_serde")]
        head_interval: Duration = seconds(1),
        /// Time to pay before an order is cancelled.
        #[serde(with = "humantime_serde")]
        payment_window: Duration = seconds(15 * 60),
        #[serde(with = "humantime_serde")]
        lease_ttl: Duration = seconds(6),
        #[serde(with = "humantime_serde")]
        heartbeat_interval: Duration = seconds(2),
        /// Longest wait of a caller while a partition changes owner.
        #[serde(with = "humantime_serde")]
        takeover_wait: Duration = seconds(5),
        /// How long a request id is remembered, in whole days, at most 365. Raised, it holds for what is recorded from then on.
        #[serde(with = "humantime_serde")]
        ledger_retention: Duration = seconds(7 * 24 * 3600),
        /// How often children of the event and ledger tables are made and dropped.
        #[serde(with = "humantime_serde")]
        upkeep_interval: Duration = seconds(60),
    }
}

section! {
    QuerySettings {
        /// Memory for cached replies.
        cache_bytes: u64 = 256 * MIB as u64,
        /// Buckets per partition that remember where the change feed last named a key.
        change_buckets: usize = 4096,
        /// A query that would wait longer for a connection of its read database is refused with RESOURCE_EXHAUSTED.
        #[serde(with = "humantime_serde")]
        queue_wait: Duration = ms(500),
        /// Longest wait for a token.
        #[serde(with = "humantime_serde")]
        token_wait: Duration = seconds(5),
        /// Part of a caller's deadline kept for the answer.
        #[serde(with = "humantime_serde")]
        token_margin: Duration = ms(50),
        /// A partition not announced for this long counts as unproven.
        #[serde(with = "humantime_serde")]
        unproven_after: Duration = seconds(3),
        /// A watch says that it lives when nothing changed for this long.
        #[serde(with = "humantime_serde")]
        watch_heartbeat: Duration = seconds(10),
        /// A watch whose reader leaves a reply untaken for this long is cut off; it resumes with its last token.
        #[serde(with = "humantime_serde")]
        watch_patience: Duration = seconds(30),
    }
}

section! {
    ProjectorSettings {
        /// How many write to each read database side by side, each on a connection of its own and with its share of the
        /// partitions: while one waits for its rows to be written, another folds or sends. Each has batches of its own under way; the
        /// rows kept between batches are divided among them.
        writers: usize = 2,
        /// Bounds of one transaction over all partitions of a writer: its events, and their bytes. It has fewer events where their
        /// rows are large: more than four times these bytes it is not meant to write.
        batch_events: usize = 4096,
        batch_bytes: usize = 4 * MIB,
        /// Least time from one transaction of a writer to the next while events come in faster than one at a time: what
        /// arrives in between shares one. A lonely event is written at once, and a backlog without a pause.
        #[serde(with = "humantime_serde")]
        batch_interval: Duration = ms(10),
        /// Rows kept in memory between batches.
        row_cache_entries: u64 = 100_000,
        /// Events set aside per partition at most, because they or an earlier one of their entity could not be applied; a
        /// partition with more stands still.
        parked_events_max: u32 = 10_000,
        /// Checkpoints are announced at least this often.
        #[serde(with = "humantime_serde")]
        feed_interval: Duration = seconds(1),
        /// A replica that did not tell for this long that it lives loses its partitions to the others.
        #[serde(with = "humantime_serde")]
        lease_ttl: Duration = seconds(6),
        #[serde(with = "humantime_serde")]
        heartbeat_interval: Duration = seconds(1),
        /// What makes no progress for this long although there is some to make is started anew: the reader of a partition that
        /// lags, or a call of the read database.
        #[serde(with = "humantime_serde")]
        watchdog_after: Duration = seconds(30),
        /// A partition behind its announced head without messages for this long is read from the event log.
        #[serde(with = "humantime_serde")]
        backfill_after: Duration = seconds(2),
        #[serde(with = "humantime_serde")]
        retry_backoff: Duration = ms(100),
        #[serde(with = "humantime_serde")]
        retry_backoff_max: Duration = seconds(10),
    }
}

section! {
    SagaSettings {
        /// Orders worked on at the same time.
        parallel_orders: usize = 64,
        batch_events: usize = 256,
        /// Deadline of one step's command.
        #[serde(with = "humantime_serde")]
        step_deadline: Duration = seconds(5),
        #[serde(with = "humantime_serde")]
        retry_backoff: Duration = ms(100),
        #[serde(with = "humantime_serde")]
        retry_backoff_max: Duration = seconds(10),
        /// A replica that did not tell for this long that it lives loses its partitions to the others.
        #[serde(with = "humantime_serde")]
        lease_ttl: Duration = seconds(6),
        #[serde(with = "humantime_serde")]
        heartbeat_interval: Duration = seconds(1),
        /// What makes no progress for this long although there is some to make is started anew: a partition that lags, or all of
        /// a write database that does not answer.
        #[serde(with = "humantime_serde")]
        watchdog_after: Duration = seconds(30),
        /// How often due timers are looked for.
        #[serde(with = "humantime_serde")]
        timer_interval: Duration = ms(500),
    }
}

section! {
    /// Where there are several regions.
    ReplicatorSettings {
        /// Pauses before an origin is asked again that could not be reached or broke off.
        #[serde(with = "humantime_serde")]
        retry_backoff: Duration = ms(100),
        #[serde(with = "humantime_serde")]
        retry_backoff_max: Duration = seconds(2),
        /// A replica that did not tell for this long that it lives loses its copies to the others.
        #[serde(with = "humantime_serde")]
        lease_ttl: Duration = seconds(6),
        #[serde(with = "humantime_serde")]
        heartbeat_interval: Duration = seconds(1),
    }
}
