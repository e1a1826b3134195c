//! `souk call`: any RPC of the running system, known only by what its servers tell of themselves.

mod codec;
mod contracts;
mod describe;
mod failure;
mod session;

use std::{
    io::Read,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions, Value};
use tonic::{Request, Status, client::Grpc};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::{
    paint::{self, say},
    system::Target,
};
use codec::DynamicCodec;
pub use contracts::is_meant;
use contracts::{Contracts, Found};
use session::TokenFile;

#[derive(Debug, clap::Args)]
#[command(after_help = "A service may be named by any part of its name: catalog/CreateProduct, orders/getorder, or just the method.\n\
                        A request id and the session's token (.souk/session) are filled in where the request has such fields.")]
pub struct Args {
    /// SERVICE/METHOD, or METHOD where one service alone has it
    #[arg(required_unless_present_any = ["list", "descriptors"])]
    method: Option<String>,
    /// The request as JSON; "-" reads it from stdin
    #[arg(default_value = "{}")]
    request: String,
    /// List all services and methods
    #[arg(long)]
    list: bool,
    /// Show the fields of the method's request and reply instead of calling it
    #[arg(long)]
    describe: bool,
    /// Write the contracts as a descriptor set, for protoc, ghz or grpcurl, instead of calling anything
    #[arg(long, value_name = "FILE")]
    descriptors: Option<PathBuf>,
    /// Time for the call
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    deadline: Duration,
    /// Who calls, stored with every event
    #[arg(long, value_name = "NAME", default_value = "souk-call")]
    caller: String,
    /// Neither send nor keep consistency tokens
    #[arg(long)]
    no_session: bool,
    #[command(flatten)]
    target: Target,
}

pub async fn run(args: Args) -> Result<()> {
    if let Some(file) = &args.descriptors {
        return std::fs::write(file, souk_proto::DESCRIPTORS).with_context(|| format!("cannot write {}", file.display()));
    }
    let contracts = Contracts::new(&args.target.find()?)?;
    if args.list {
        return describe::list(&contracts).await;
    }
    let found = contracts.find(args.method.as_deref().unwrap_or_default()).await?;
    if args.describe {
        describe::method(&found.method);
        return Ok(());
    }
    if found.method.is_client_streaming() {
        bail!("{} takes a stream of requests, which this command cannot send", found.method.full_name());
    }
    let request = read_request(found.method.input(), &args.request)?;
    let tokens = TokenFile::open(args.no_session);
    Call { args: &args, found, tokens }.run(request).await
}

/// One call, ready to be sent.
struct Call<'a> {
    args: &'a Args,
    found: Found,
    tokens: TokenFile,
}

impl Call<'_> {
    async fn run(mut self, request: DynamicMessage) -> Result<()> {
        let complete = self.complete(request.clone());
        let used_token = text(&complete, "token") != text(&request, "token");
        let began = Instant::now();
        let status = match self.send(complete, began).await {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        let stale = matches!(reason(&status).as_str(), "INVALID_TOKEN" | "LOG_RESTORED");
        if !(stale && used_token) {
            bail!(failure::readable(&status));
        }
        eprintln!("{}", paint::dim("the session's token belongs to another life of this system: forgotten, asking again"));
        self.tokens.forget();
        self.send(self.complete(request), began).await.map_err(|status| anyhow::anyhow!(failure::readable(&status)))
    }

    /// Fills in what every request of its kind has.
    fn complete(&self, mut request: DynamicMessage) -> DynamicMessage {
        let (field, value) = match &self.found.method {
            // A token begins a stream after what it names: it is for resuming, and the caller's to give.
            method if method.is_server_streaming() => return request,
            _ if self.is_command() => ("request_id", Uuid::now_v7().to_string()),
            _ => ("token", self.tokens.text()),
        };
        let has_field = self.found.method.input().get_field_by_name(field).is_some();
        if has_field && text(&request, field).is_empty() {
            request.set_field_by_name(field, Value::String(value));
        }
        request
    }

    /// Only requests that change something have a request id.
    fn is_command(&self) -> bool {
        self.found.method.input().get_field_by_name("request_id").is_some()
    }

    async fn send(&mut self, message: DynamicMessage, began: Instant) -> Result<(), Status> {
        let request_id = text(&message, "request_id");
        let mut request = Request::new(message);
        if let Ok(caller) = self.args.caller.parse() {
            request.metadata_mut().insert("souk-caller", caller);
        }
        let method = self.found.method.clone();
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = path.parse().map_err(|_| Status::internal(format!("{path} is no path")))?;
        let mut grpc = Grpc::new(self.found.channel.clone());
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = DynamicCodec::new(method.output());
        if method.is_server_streaming() {
            let mut replies = grpc.server_streaming(request, path, codec).await?.into_inner();
            while let Some(reply) = replies.message().await? {
                self.show(&reply);
            }
            return Ok(());
        }
        request.set_timeout(self.args.deadline);
        let reply = grpc.unary(request, path, codec).await?.into_inner();
        self.show(&reply);
        let id = if request_id.is_empty() { String::new() } else { format!("  request_id {request_id}") };
        eprintln!("{}", paint::dim(format!("OK  {:.1} ms{id}", began.elapsed().as_secs_f64() * 1e3)));
        Ok(())
    }

    fn show(&mut self, reply: &DynamicMessage) {
        say(json(reply));
        self.tokens.keep(reply);
    }
}

fn read_request(kind: MessageDescriptor, text: &str) -> Result<DynamicMessage> {
    let mut stdin = String::new();
    let text = if text == "-" {
        std::io::stdin().read_to_string(&mut stdin).context("cannot read the request from stdin")?;
        &stdin
    } else {
        text
    };
    parse_request(kind, text)
}

/// A request from its JSON.
pub fn parse_request(kind: MessageDescriptor, text: &str) -> Result<DynamicMessage> {
    let name = kind.full_name().to_owned();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize_with_options(kind, &mut deserializer, &DeserializeOptions::new().deny_unknown_fields(true))
        .with_context(|| format!("the request is no {name} (--describe shows its fields)"))?;
    deserializer.end().context("there is more after the request")?;
    Ok(message)
}

/// A message as JSON with the names of the contract, so that replies can be pasted into requests.
fn json(message: &DynamicMessage) -> String {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    let value = message.serialize_with_options(serde_json::value::Serializer, &options);
    value.and_then(|value| serde_json::to_string_pretty(&value)).unwrap_or_else(|error| format!("{message:?} ({error})"))
}

/// A text field; empty when there is no such field.
fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}
