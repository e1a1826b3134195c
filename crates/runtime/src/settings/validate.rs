use std::{fmt, ops::RangeInclusive, time::Duration};

use souk_event_sourcing::TokenKey;

use super::{DatabasesSettings, Settings};

/// A value that has the right type and is wrong all the same.
pub(super) struct Problem {
    pub key: String,
    pub complaint: String,
}

/// A ledger has a child for each day, and a request id that tells no day is looked for in all of them.
const LONGEST_RETENTION: Duration = Duration::from_secs(365 * 86_400);
/// Stock holds units for at most 30 days, and a hold outlives the payment window by a day.
const LONGEST_PAYMENT_WINDOW: Duration = Duration::from_secs(28 * 86_400);

type Checked = Result<(), Problem>;

/// Checks what types cannot say; the first problem is the answer.
pub(super) fn check(settings: &Settings) -> Checked {
    installation(settings)?;
    databases("write", &settings.write)?;
    databases("read", &settings.read)?;
    nats(settings)?;
    peers(settings)?;
    within("process.threads", settings.process.threads, 0..=1024)?;
    grpc(settings)?;
    telemetry(settings)?;
    command(settings)?;
    query(settings)?;
    background(settings)
}

fn installation(settings: &Settings) -> Checked {
    let installation = &settings.installation;
    within("installation.partitions", installation.partitions, 1..=4096)?;
    within("installation.region_number", installation.region_number, 1..=u16::MAX)?;
    want(
        label(&installation.region),
        "installation.region",
        format_args!("{:?}", installation.region),
        "a label of 1–32 letters, digits or '-'",
    )?;
    if TokenKey::from_hex(&installation.token_key).is_none() {
        return Err(problem("installation.token_key", "want 64 hexadecimal digits (value not shown)"));
    }
    Ok(())
}

fn databases(side: &str, settings: &DatabasesSettings) -> Checked {
    for (index, database) in settings.databases.iter().enumerate() {
        let key = |field: &str| format!("{side}.databases[{index}].{field}");
        want(label(&database.name), &key("name"), format_args!("{:?}", database.name), "a name of 1–32 letters, digits or '-'")?;
        if settings.databases[..index].iter().any(|other| other.name == database.name) {
            return Err(problem(key("name"), format!("{:?} is there twice", database.name)));
        }
        postgres_url(&key("url"), &database.url)?;
        // A standby may show commits of several partitions in another order than they were made: whoever decides reads the primary.
        if side == "write" && !database.replicas.is_empty() {
            return Err(problem(key("replicas"), "a write database is read on its primary alone"));
        }
        if let Some(url) = &database.pooled_url {
            postgres_url(&key("pooled_url"), url)?;
            want(side == "write", &key("pooled_url"), format_args!("a second address"), "needed: give the pooler's as url")?;
        }
        for (number, url) in database.replicas.iter().enumerate() {
            postgres_url(&format!("{}[{number}]", key("replicas")), url)?;
        }
        within(&key("max_connections"), database.max_connections, 1..=1000)?;
    }
    Ok(())
}

fn postgres_url(key: &str, url: &str) -> Checked {
    let fine = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    if fine { Ok(()) } else { Err(problem(key, "want postgres://… (value not shown)")) }
}

fn nats(settings: &Settings) -> Checked {
    let nats = &settings.nats;
    let url = |url: &str| ["nats://", "tls://"].iter().any(|scheme| url.trim().starts_with(scheme));
    if !nats.url.is_empty() && !nats.url.split(',').all(url) {
        return Err(problem("nats.url", "want nats://… or tls://…, several separated by commas (value not shown)"));
    }
    want(label(&nats.prefix), "nats.prefix", format_args!("{:?}", nats.prefix), "1–32 letters, digits or '-'")?;
    within("nats.stream_replicas", nats.stream_replicas, 1..=5)?;
    within("nats.stream_max_bytes", nats.stream_max_bytes, 1 << 20..=1 << 50)?;
    positive("nats.stream_max_age", nats.stream_max_age)
}

fn peers(settings: &Settings) -> Checked {
    let peers = &settings.peers;
    for (name, urls) in [
        ("command", &peers.command),
        ("command_internal", &peers.command_internal),
        ("query", &peers.query),
        ("query_internal", &peers.query_internal),
        ("projector_internal", &peers.projector_internal),
        ("saga_internal", &peers.saga_internal),
        ("replicator_internal", &peers.replicator_internal),
    ] {
        urls.split(',').try_for_each(|url| http_url(&format!("peers.{name}"), url))?;
    }
    for (name, urls) in &peers.regions {
        urls.split(',').try_for_each(|url| http_url(&format!("peers.regions.{name}"), url))?;
    }
    Ok(())
}

fn grpc(settings: &Settings) -> Checked {
    let grpc = &settings.grpc;
    within("grpc.max_concurrent_streams", grpc.max_concurrent_streams, 1..=100_000)?;
    within("grpc.max_local_error_resets", grpc.max_local_error_resets, 1..=1_000_000)?;
    within("grpc.max_message_bytes", grpc.max_message_bytes, 1024..=64 << 20)?;
    within("grpc.max_header_list_bytes", grpc.max_header_list_bytes, 1024..=1 << 20)?;
    within("grpc.max_connections", grpc.max_connections, 1..=1_000_000)?;
    within("grpc.max_concurrent_calls", grpc.max_concurrent_calls, 1..=1_000_000)?;
    within("grpc.max_open_streams", grpc.max_open_streams, 1..=1_000_000)?;
    within("grpc.connection_age_jitter", grpc.connection_age_jitter, 0.0..=0.9)?;
    for (name, value) in [
        ("first_request_timeout", grpc.first_request_timeout),
        ("reply_patience", grpc.reply_patience),
        ("keepalive_interval", grpc.keepalive_interval),
        ("keepalive_timeout", grpc.keepalive_timeout),
        ("max_connection_age", grpc.max_connection_age),
        ("default_deadline", grpc.default_deadline),
        ("max_deadline", grpc.max_deadline),
    ] {
        positive(&format!("grpc.{name}"), value)?;
    }
    Ok(())
}

fn telemetry(settings: &Settings) -> Checked {
    let telemetry = &settings.telemetry;
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&telemetry.log_filter) {
        return Err(problem("telemetry.log_filter", format!("{:?}: {error}", telemetry.log_filter)));
    }
    within("telemetry.trace_sample", telemetry.trace_sample, 0.0..=1.0)?;
    telemetry.otlp_endpoint.as_ref().map_or(Ok(()), |url| http_url("telemetry.otlp_endpoint", url))
}

fn command(settings: &Settings) -> Checked {
    let command = &settings.command;
    within("command.queue_length", command.queue_length, 1..=1_000_000)?;
    within("command.batch_commands", command.batch_commands, 1..=10_000)?;
    within("command.batch_bytes", command.batch_bytes, 64 * 1024..=64 << 20)?;
    batch_interval("command.batch_interval", command.batch_interval)?;
    within("command.append_retries", command.append_retries, 1..=1000)?;
    within("command.snapshot_every", command.snapshot_every, 1..=1_000_000)?;
    within("command.ring_capacity", command.ring_capacity, 1..=10_000_000)?;
    // More publishes in flight starve consumers of one connection (async-nats issue 1285).
    within("command.relay_window", command.relay_window, 1..=1000)?;
    for (name, value) in [
        ("queue_wait", command.queue_wait),
        ("relay_check_interval", command.relay_check_interval),
        ("head_interval", command.head_interval),
        ("payment_window", command.payment_window),
        ("takeover_wait", command.takeover_wait),
        ("ledger_retention", command.ledger_retention),
        ("upkeep_interval", command.upkeep_interval),
    ] {
        positive(&format!("command.{name}"), value)?;
    }
    for (name, value, longest) in [
        ("payment_window", command.payment_window, LONGEST_PAYMENT_WINDOW),
        ("ledger_retention", command.ledger_retention, LONGEST_RETENTION),
    ] {
        want(value <= longest, &format!("command.{name}"), format_args!("{}", shown(value)), &format!("at most {}", shown(longest)))?;
    }
    lease("command", command.lease_ttl, command.heartbeat_interval)
}

fn batch_interval(name: &'static str, interval: Duration) -> Checked {
    want(interval <= Duration::from_secs(1), name, format_args!("{}", shown(interval)), "at most a second")
}

fn query(settings: &Settings) -> Checked {
    let query = &settings.query;
    within("query.change_buckets", query.change_buckets, 1..=1 << 20)?;
    positive("query.queue_wait", query.queue_wait)?;
    positive("query.unproven_after", query.unproven_after)?;
    positive("query.watch_patience", query.watch_patience)?;
    positive("query.watch_heartbeat", query.watch_heartbeat)
}

fn background(settings: &Settings) -> Checked {
    within("projector.writers", settings.projector.writers, 1..=16)?;
    within("projector.batch_events", settings.projector.batch_events, 1..=100_000)?;
    within("projector.batch_bytes", settings.projector.batch_bytes, 64 * 1024..=256 << 20)?;
    batch_interval("projector.batch_interval", settings.projector.batch_interval)?;
    within("projector.parked_events_max", settings.projector.parked_events_max, 1..=1_000_000)?;
    positive("projector.feed_interval", settings.projector.feed_interval)?;
    positive("projector.retry_backoff", settings.projector.retry_backoff)?;
    positive("projector.watchdog_after", settings.projector.watchdog_after)?;
    lease("projector", settings.projector.lease_ttl, settings.projector.heartbeat_interval)?;
    within("saga.parallel_orders", settings.saga.parallel_orders, 1..=100_000)?;
    within("saga.batch_events", settings.saga.batch_events, 1..=100_000)?;
    positive("saga.step_deadline", settings.saga.step_deadline)?;
    positive("saga.retry_backoff", settings.saga.retry_backoff)?;
    positive("saga.watchdog_after", settings.saga.watchdog_after)?;
    lease("saga", settings.saga.lease_ttl, settings.saga.heartbeat_interval)?;
    positive("saga.timer_interval", settings.saga.timer_interval)?;
    positive("replicator.retry_backoff", settings.replicator.retry_backoff)?;
    lease("replicator", settings.replicator.lease_ttl, settings.replicator.heartbeat_interval)
}

/// Who misses one heartbeat is not dead.
fn lease(section: &str, lease_ttl: Duration, heartbeat_interval: Duration) -> Checked {
    positive(&format!("{section}.heartbeat_interval"), heartbeat_interval)?;
    let wanted = format!("at least twice the heartbeat_interval of {}", shown(heartbeat_interval));
    want(lease_ttl >= heartbeat_interval * 2, &format!("{section}.lease_ttl"), format_args!("{}", shown(lease_ttl)), &wanted)
}

fn label(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn http_url(key: &str, url: &str) -> Checked {
    let parsed = url.parse::<http::Uri>().ok();
    let fine =
        parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()));
    want(fine, key, format_args!("{url:?}"), "a url like http://host:port")
}

fn positive(key: &str, value: Duration) -> Checked {
    want(value > Duration::ZERO, key, format_args!("{}", shown(value)), "longer than zero")
}

fn within<T: PartialOrd + fmt::Debug + fmt::Display>(key: &str, value: T, range: RangeInclusive<T>) -> Checked {
    if range.contains(&value) { Ok(()) } else { Err(problem(key, format!("{value} is not in {range:?}"))) }
}

fn want(fine: bool, key: &str, value: fmt::Arguments<'_>, wanted: &str) -> Checked {
    if fine { Ok(()) } else { Err(problem(key, format!("{value} is not {wanted}"))) }
}

fn problem(key: impl Into<String>, complaint: impl Into<String>) -> Problem {
    Problem { key: key.into(), complaint: complaint.into() }
}

fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
