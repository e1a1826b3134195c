use anyhow::Result;
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};

use super::contracts::{Contracts, short};
use crate::paint::{self, say};

/// All services of all ports with their methods.
pub async fn list(contracts: &Contracts) -> Result<()> {
    for door in contracts.doors() {
        say(paint::bold(format!("{} port", door.name)));
        for service in door.services().await?.1 {
            say(format_args!("  {}", paint::dim(service.full_name())));
            for method in service.methods() {
                let stream = if method.is_server_streaming() { "  (stream of replies)" } else { "" };
                say(format_args!("    {}{}", short(&method), paint::dim(stream)));
            }
        }
    }
    Ok(())
}

/// The fields of a method's request and reply.
pub fn method(method: &MethodDescriptor) {
    say(paint::bold(method.full_name()));
    for (title, message) in [("request", method.input()), ("reply", method.output())] {
        say(format_args!("\n{title} {}", paint::dim(message.full_name())));
        fields(&message, 1, &mut Vec::new());
    }
}

fn fields(message: &MessageDescriptor, depth: usize, above: &mut Vec<String>) {
    for field in message.fields() {
        say(format_args!("{:indent$}{}  {}", "", field.name(), paint::dim(kind(&field)), indent = depth * 2));
        if let Kind::Message(inner) = field.kind()
            && !field.is_map()
            && !inner.full_name().starts_with("google.protobuf.")
            && !above.iter().any(|name| name == inner.full_name())
        {
            above.push(inner.full_name().to_owned());
            fields(&inner, depth + 1, above);
            above.pop();
        }
    }
}

fn kind(field: &FieldDescriptor) -> String {
    let name = match field.kind() {
        Kind::Message(message) if message.full_name() == "google.protobuf.Timestamp" => "time, as 2026-01-31T12:00:00Z".to_owned(),
        Kind::Message(message) if message.full_name() == "google.protobuf.FieldMask" => "names, separated by commas".to_owned(),
        Kind::Message(message) => message.name().to_owned(),
        Kind::Enum(kind) => {
            let values: Vec<_> = kind.values().skip(1).map(|value| value.name().to_owned()).collect();
            values.join(" | ")
        }
        other => format!("{other:?}").to_lowercase(),
    };
    match field.cardinality() {
        _ if field.is_map() => "map".to_owned(),
        Cardinality::Repeated => format!("list of {name}"),
        _ => name,
    }
}
