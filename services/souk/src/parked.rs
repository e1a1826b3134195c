//! `souk parked`: entities that stand still in the views because an event of theirs could not be applied.

use std::{fmt::Write, time::SystemTime};

use anyhow::{Context, Result, bail};
use souk_proto::internal::v1::{
    DropParkedEntityRequest, ListParkedEntitiesRequest, ListParkedEventsRequest, ParkedEntity, ParkedEvent, ReplayParkedEntityRequest,
    parked_entity_service_client::ParkedEntityServiceClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{
    paint::{self, say},
    system::Target,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the entities, and why they stand still
    List(List),
    /// Show the events that are set aside of one of them
    Show(Show),
    /// Apply what is set aside with the code that runs now, each entity in one transaction
    Replay(Replay),
    /// Give up what is set aside of an entity, for good
    Drop(Drop),
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// One JSON object per entity
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// The entity, as `list` names it: category-id
    #[arg(value_name = "ID")]
    stream: String,
    /// One JSON object per event
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct Replay {
    /// The entity, as `list` names it: category-id
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    stream: Option<String>,
    /// Every parked entity
    #[arg(long)]
    all: bool,
    /// Only tell what would become of it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct Drop {
    /// The entity, as `list` names it: category-id
    #[arg(value_name = "ID")]
    stream: String,
    /// Do it: the view will lack these events, and audit will tell
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    target: Target,
}

const PAGE: i32 = 1000;

/// # Errors
/// When no projector answers, or something asked for could not be done.
pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::List(args) => list(args).await,
        Command::Show(args) => show(args).await,
        Command::Replay(args) => replay(args).await,
        Command::Drop(args) => drop_events(args).await,
    }
}

async fn list(args: List) -> Result<()> {
    let entities = Projectors::find(&args.target)?.entities().await?;
    if args.json {
        entities.iter().for_each(|entity| say(entity_json(entity)));
    } else if entities.is_empty() {
        say(paint::green("nothing is set aside"));
    } else {
        say(entity_table(&entities).trim_end());
    }
    Ok(())
}

async fn show(args: Show) -> Result<()> {
    let events = Projectors::find(&args.target)?.events(&args.stream).await?;
    if args.json {
        events.iter().for_each(|event| say(event_json(event)));
    } else {
        say(event_table(&events).trim_end());
    }
    Ok(())
}

async fn replay(args: Replay) -> Result<()> {
    let projectors = Projectors::find(&args.target)?;
    let streams: Vec<String> = match args.stream {
        Some(stream) => vec![stream],
        None => projectors.entities().await?.into_iter().map(|entity| entity.stream).collect(),
    };
    let mut failed = 0;
    for stream in &streams {
        let request = ReplayParkedEntityRequest { stream: stream.clone(), validate_only: args.dry_run };
        let reply = projectors.ask(async |mut client| client.replay_parked_entity(request.clone()).await).await?;
        let events = reply.event_count;
        match (reply.failure.as_str(), args.dry_run) {
            ("", true) => say(format_args!("{stream}: {events} events would be applied")),
            ("", false) => say(format_args!("{stream}: {} events applied", paint::green(events))),
            (failure, _) => {
                failed += 1;
                say(format_args!("{stream}: {} after {events} events: {failure}", paint::red("stays parked")));
            }
        }
    }
    if streams.is_empty() {
        say("nothing is set aside");
    }
    if failed > 0 { bail!("{failed} of {} entities cannot be replayed", streams.len()) } else { Ok(()) }
}

async fn drop_events(args: Drop) -> Result<()> {
    let projectors = Projectors::find(&args.target)?;
    if !args.yes {
        let events = projectors.events(&args.stream).await?.len();
        bail!("this gives up {events} events of {} for good: say --yes to do it", args.stream);
    }
    let request = DropParkedEntityRequest { stream: args.stream.clone() };
    let reply = projectors.ask(async |mut client| client.drop_parked_entity(request.clone()).await).await?;
    say(format_args!("{}: {} events given up", args.stream, reply.event_count));
    Ok(())
}

/// The projectors of the system: each can list, the one that holds an entity's partition can change.
struct Projectors(Vec<ParkedEntityServiceClient<Channel>>);

impl Projectors {
    fn find(target: &Target) -> Result<Self> {
        let system = target.find()?;
        let urls = system.internal.iter().filter(|(service, _)| service.starts_with("projector")).map(|(_, url)| url.clone());
        let clients = urls.map(|url| Ok(ParkedEntityServiceClient::new(Endpoint::from_shared(url)?.connect_lazy())));
        let clients = clients.collect::<Result<Vec<_>>>()?;
        if clients.is_empty() {
            bail!("name the internal ports of the projectors (--internal): they are known only for a system started by `souk up`");
        }
        Ok(Self(clients))
    }

    /// Asks one after the other until one can answer.
    async fn ask<T>(&self, call: impl AsyncFn(ParkedEntityServiceClient<Channel>) -> Result<tonic::Response<T>, Status>) -> Result<T> {
        let mut refusal = None;
        for client in &self.0 {
            match call(client.clone()).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) if may_ask_another(&status) => refusal = Some(status),
                Err(status) => bail!("{}", status.message()),
            }
        }
        let refusal = refusal.context("there is no projector")?;
        bail!("no projector can do it: {}", refusal.message())
    }

    async fn entities(&self) -> Result<Vec<ParkedEntity>> {
        let mut entities = Vec::new();
        let mut request = ListParkedEntitiesRequest { page_size: PAGE, page_token: String::new() };
        loop {
            let page = self.ask(async |mut client| client.list_parked_entities(request.clone()).await).await?;
            entities.extend(page.entities);
            if page.next_page_token.is_empty() {
                return Ok(entities);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn events(&self, stream: &str) -> Result<Vec<ParkedEvent>> {
        let mut events = Vec::new();
        let mut request = ListParkedEventsRequest { stream: stream.to_owned(), page_size: PAGE, page_token: String::new() };
        loop {
            let page = self.ask(async |mut client| client.list_parked_events(request.clone()).await).await?;
            events.extend(page.events);
            if page.next_page_token.is_empty() {
                return Ok(events);
            }
            request.page_token = page.next_page_token;
        }
    }
}

fn may_ask_another(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.get_details_error_info().is_some_and(|info| info.reason == "PARTITION_NOT_HELD")
}

/// Entities one a line. Writing to a String cannot fail.
fn entity_table(entities: &[ParkedEntity]) -> String {
    let width = entities.iter().map(|entity| entity.stream.len()).max().unwrap_or_default().max(2);
    let mut text = String::new();
    let header = format!("{:<width$}  {:>9}  {:>9}  {:>6}  {:<12}  REASON", "ID", "PARTITION", "AT", "EVENTS", "SINCE");
    let _ = writeln!(text, "{}", paint::dim(header));
    for entity in entities {
        let ParkedEntity { stream, event_count, parked_at, reason, .. } = entity;
        let partition = format!("{}/{}", entity.region, entity.partition);
        let since = clock(entity.stale_since);
        let _ = writeln!(text, "{stream:<width$}  {partition:>9}  {parked_at:>9}  {event_count:>6}  {since:<12}  {reason}");
    }
    text
}

fn event_table(events: &[ParkedEvent]) -> String {
    let width = events.iter().map(|event| event.r#type.len()).max().unwrap_or_default().max(4);
    let mut text = String::new();
    let header = format!(
        "{:>9}  {:>7}  {:<width$}  {:>6}  {:>8}  {:<12}  {:<14}  REASON",
        "POSITION", "VERSION", "TYPE", "SCHEMA", "BYTES", "DECIDED", "BY"
    );
    let _ = writeln!(text, "{}", paint::dim(header));
    for event in events {
        let ParkedEvent { position, version, schema_version, payload_bytes, actor, reason, .. } = event;
        let (kind, decided) = (&event.r#type, clock(event.event_time));
        let _ = writeln!(
            text,
            "{position:>9}  {version:>7}  {kind:<width$}  {schema_version:>6}  {payload_bytes:>8}  {decided:<12}  {actor:<14}  {reason}"
        );
    }
    text
}

fn entity_json(entity: &ParkedEntity) -> serde_json::Value {
    serde_json::json!({
        "id": entity.stream,
        "region": entity.region,
        "partition": entity.partition,
        "parked_at": entity.parked_at,
        "events": entity.event_count,
        "stale_since": rfc3339(entity.stale_since),
        "reason": entity.reason,
    })
}

fn event_json(event: &ParkedEvent) -> serde_json::Value {
    serde_json::json!({
        "region": event.region,
        "partition": event.partition,
        "position": event.position,
        "version": event.version,
        "type": event.r#type,
        "schema_version": event.schema_version,
        "payload_bytes": event.payload_bytes,
        "actor": event.actor,
        "event_time": rfc3339(event.event_time),
        "parked_time": rfc3339(event.parked_time),
        "reason": event.reason,
    })
}

fn system_time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| time.try_into().ok())
}

fn clock(time: Option<prost_types::Timestamp>) -> String {
    system_time(time).map(paint::clock).unwrap_or_default()
}

fn rfc3339(time: Option<prost_types::Timestamp>) -> Option<String> {
    system_time(time).and_then(|time| jiff::Timestamp::try_from(time).ok()).map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_entity_and_what_stands_in_its_way() {
        let entity = ParkedEntity {
            region: 1,
            partition: 7,
            stream: "cart-c-1".into(),
            event_count: 3,
            parked_at: 42,
            stale_since: Some(prost_types::Timestamp { seconds: 3, nanos: 0 }),
            reason: "no view knows its name".into(),
        };
        let text = entity_table(&[entity]);
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line[..5], ["cart-c-1", "1/7", "42", "3", "00:00:03.000"], "{text}");
        assert!(text.trim_end().ends_with("no view knows its name"));
    }

    #[test]
    fn another_projector_is_asked_only_when_it_may_know_better() {
        assert!(may_ask_another(&souk_runtime::Failure::refused("PARTITION_NOT_HELD", "no").into()));
        assert!(may_ask_another(&Status::unavailable("away")));
        assert!(!may_ask_another(&souk_runtime::Failure::not_found("ENTITY_NOT_PARKED", "no").into()));
    }
}
