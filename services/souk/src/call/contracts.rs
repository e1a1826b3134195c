use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use anyhow::{Context, Result, anyhow, bail};
use futures::stream;
use prost::Message;
use prost_reflect::{DescriptorPool, MethodDescriptor, ServiceDescriptor};
use prost_types::FileDescriptorProto;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::system::System;

/// The contracts of the running system, as its servers tell them by reflection.
pub struct Contracts {
    /// Public ports, then internal ones: what is found on the first is taken.
    doors: Vec<Door>,
}

/// One port of a service.
pub struct Door {
    pub name: String,
    /// All replicas, which tell the same.
    replicas: Vec<Channel>,
}

/// A method and where it is served.
pub struct Found {
    pub method: MethodDescriptor,
    pub channel: Channel,
}

impl Contracts {
    pub fn new(system: &System) -> Result<Self> {
        let mut doors: Vec<(String, Vec<&str>)> = Vec::new();
        doors.push(("command".to_owned(), system.command.split(',').collect()));
        doors.push(("query".to_owned(), system.query.split(',').collect()));
        for (replica, url) in &system.internal {
            let name = format!("{}, internal", replica.split('-').next().unwrap_or(replica));
            match doors.last_mut().filter(|(last, _)| *last == name) {
                Some((_, urls)) => urls.push(url),
                None => doors.push((name, vec![url])),
            }
        }
        let doors = doors.into_iter().map(|(name, urls)| {
            let channel =
                |url: &str| anyhow::Ok(Endpoint::from_shared(url.to_owned()).with_context(|| format!("{url:?} is no url"))?.connect_lazy());
            Ok(Door { name, replicas: urls.into_iter().map(channel).collect::<Result<_>>()? })
        });
        Ok(Self { doors: doors.collect::<Result<_>>()? })
    }

    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// The method meant by `name`.
    ///
    /// # Errors
    /// When there is none, or several; the line names them.
    pub async fn find(&self, name: &str) -> Result<Found> {
        let (service, method) = name.rsplit_once('/').or_else(|| name.rsplit_once('.')).unwrap_or(("", name));
        let mut candidates: BTreeMap<String, (MethodDescriptor, Channel)> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for door in &self.doors {
            let (channel, services) = door.services().await?;
            for descriptor in services.into_iter().filter(|descriptor| is_meant(service, descriptor.full_name())) {
                known.extend(descriptor.methods().map(|method| short(&method)));
                let methods = descriptor.methods().filter(|known| known.name().eq_ignore_ascii_case(method));
                for method in methods {
                    candidates.entry(method.full_name().to_owned()).or_insert((method, channel.clone()));
                }
            }
        }
        let names: Vec<_> = candidates.keys().cloned().collect();
        match (candidates.into_values().next(), names.len()) {
            (Some((method, channel)), 1) => Ok(Found { method, channel }),
            (Some(_), _) => bail!("{name:?} may be any of {}", names.join(", ")),
            (None, _) if known.is_empty() => bail!("no service is called {service:?}; see souk call --list"),
            (None, _) => bail!("no method is called {method:?}; there are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Door {
    /// The services of this port that are Souk's own, with all their types, and the first replica that answers.
    pub async fn services(&self) -> Result<(Channel, Vec<ServiceDescriptor>)> {
        let mut failure = anyhow!("it has no replicas");
        for channel in &self.replicas {
            match (Reflection { channel }).services().await {
                Ok(services) => return Ok((channel.clone(), services)),
                Err(error) => failure = error,
            }
        }
        Err(failure.context(format!("the {} port does not answer reflection", self.name)))
    }
}

/// What one server tells of itself.
struct Reflection<'a> {
    channel: &'a Channel,
}

impl Reflection<'_> {
    async fn services(&self) -> Result<Vec<ServiceDescriptor>> {
        let names = self.list().await?;
        let pool = self.pool(&names).await?;
        Ok(names.iter().filter_map(|name| pool.get_service_by_name(name)).collect())
    }

    async fn list(&self) -> Result<Vec<String>> {
        match self.ask(MessageRequest::ListServices(String::new())).await? {
            MessageResponse::ListServicesResponse(list) => {
                let names = list.service.into_iter().map(|service| service.name);
                Ok(names.filter(|name| !name.starts_with("grpc.")).collect())
            }
            other => bail!("unexpected reply to a list of services: {other:?}"),
        }
    }

    /// The files of `services` and all they import.
    async fn pool(&self, services: &[String]) -> Result<DescriptorPool> {
        let mut files: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
        let mut wanted: Vec<_> = services.iter().cloned().map(MessageRequest::FileContainingSymbol).collect();
        while let Some(request) = wanted.pop() {
            if matches!(&request, MessageRequest::FileByFilename(name) if files.contains_key(name)) {
                continue;
            }
            let MessageResponse::FileDescriptorResponse(reply) = self.ask(request).await? else {
                bail!("unexpected reply to a question for a file")
            };
            for bytes in reply.file_descriptor_proto {
                let file = FileDescriptorProto::decode(&bytes[..])?;
                wanted.extend(file.dependency.iter().cloned().map(MessageRequest::FileByFilename));
                files.insert(file.name().to_owned(), file);
            }
        }
        let mut pool = DescriptorPool::new();
        pool.add_file_descriptor_protos(files.into_values())?;
        Ok(pool)
    }

    async fn ask(&self, question: MessageRequest) -> Result<MessageResponse> {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let mut replies = client.server_reflection_info(stream::iter([request])).await.map_err(|status| cause(&status))?.into_inner();
        match replies.message().await.map_err(|status| cause(&status))?.and_then(|reply| reply.message_response) {
            Some(MessageResponse::ErrorResponse(error)) => bail!("{}", error.error_message),
            Some(reply) => Ok(reply),
            None => bail!("no reply"),
        }
    }
}

/// What lies at the bottom of a failed call, such as "connection refused".
fn cause(status: &Status) -> anyhow::Error {
    let mut cause: &dyn Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = if cause.is::<Status>() { status.message().to_owned() } else { cause.to_string() };
    anyhow!(text)
}

/// Whether `asked` names the service: its full name, or words of it in their order (`catalog`, `catalog.query`).
pub fn is_meant(asked: &str, service: &str) -> bool {
    let service = service.to_ascii_lowercase();
    let mut rest = service.as_str();
    asked.to_ascii_lowercase().split(['.', '/', ' ']).filter(|word| !word.is_empty()).all(|word| match rest.split_once(word) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

/// `catalog/CreateProduct` for `souk.catalog.v1.CommandService.CreateProduct`.
pub fn short(method: &MethodDescriptor) -> String {
    let service = method.parent_service();
    let context = service.package_name().split('.').nth(1).unwrap_or(service.package_name());
    format!("{context}/{}", method.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_meant_by_words_of_its_name_in_order() {
        let service = "souk.catalog.v1.CommandService";
        for asked in ["", "catalog", "Catalog", "souk.catalog.v1.CommandService", "catalog.command", "catalog.v1.commandservice"] {
            assert!(is_meant(asked, service), "{asked}");
        }
        for asked in ["stock", "command.catalog", "catalog.query", "catalogue"] {
            assert!(!is_meant(asked, service), "{asked}");
        }
    }
}
