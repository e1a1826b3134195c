use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};
use rand::{SeedableRng, rngs::SmallRng};
use serde_json::Value;
use souk_load::frame;

use super::{
    keys::Keys,
    template::{Scope, Template, new_uuid},
};
use crate::call;

/// The method that is meant by a name as ghz takes it, `package.Service/Method`, or as `souk call` does.
///
/// # Errors
/// When there is none, or several, or it is a stream.
pub fn find_method(pool: &DescriptorPool, name: &str) -> Result<MethodDescriptor> {
    let (service, method) = name.rsplit_once('/').or_else(|| name.rsplit_once('.')).unwrap_or(("", name));
    let services = pool.services().filter(|known| known.full_name() == service);
    let mut services: Vec<_> = services.collect();
    if services.is_empty() {
        services = pool.services().filter(|known| call::is_meant(service, known.full_name())).collect();
    }
    let meant = services.iter().flat_map(|service| service.methods()).filter(|known| known.name().eq_ignore_ascii_case(method));
    let meant: Vec<_> = meant.collect();
    match meant.as_slice() {
        [] => bail!("no method is called {name:?}"),
        [one] if one.is_client_streaming() || one.is_server_streaming() => {
            bail!("{} is a stream; only single replies are measured", one.full_name())
        }
        [one] => Ok(one.clone()),
        several => bail!("{name:?} may be any of {}", several.iter().map(|method| method.full_name()).collect::<Vec<_>>().join(", ")),
    }
}

/// The requests of one method: those without actions are encoded once.
#[derive(Debug)]
pub struct Messages {
    method: MethodDescriptor,
    /// Taken in turn.
    variants: Vec<Variant>,
}

#[derive(Debug)]
enum Variant {
    Encoded(Bytes),
    Template(Template),
}

impl Messages {
    /// # Errors
    /// When the data are no requests of the method, or no templates of them.
    pub fn new(method: MethodDescriptor, data: &[String], keys: &Keys) -> Result<Self> {
        ensure!(!data.is_empty(), "there are no data to send");
        let variants = data.iter().map(|text| {
            let template = Template::parse(text, &method, keys)?;
            Ok(if template.is_constant() { Variant::Encoded(encode(&method, text)?) } else { Variant::Template(template) })
        });
        let variants = variants.collect::<Result<_>>()?;
        Ok(Self { method, variants })
    }

    pub fn method(&self) -> &MethodDescriptor {
        &self.method
    }

    /// Makes each once, so that what cannot be sent is known before the run. Of those that need the reply of the method before, only
    /// what they ask of it can be known.
    pub fn check(&self, keys: &Keys, before: Option<&MethodDescriptor>) -> Result<()> {
        for (number, variant) in (0..).zip(&self.variants) {
            let Variant::Template(template) = variant else { continue };
            let asked = template.asks_of_reply();
            if asked.is_empty() {
                self.make(number, &mut scope(number, &mut SmallRng::seed_from_u64(number), keys, None))?;
            } else {
                let reply = before.context("there is no reply before: the step has to come after another")?.output();
                asked.into_iter().try_for_each(|path| has_field(&reply, path))?;
            }
        }
        Ok(())
    }

    /// The request of a call, encoded and framed.
    pub fn make(&self, number: u64, scope: &mut Scope<'_>) -> Result<Bytes> {
        match &self.variants[(number % self.variants.len() as u64) as usize] {
            Variant::Encoded(frame) => Ok(frame.clone()),
            Variant::Template(template) => encode(&self.method, &template.render(scope)?),
        }
    }
}

/// What a template may speak of in the call of this number.
pub fn scope<'a>(number: u64, random: &'a mut SmallRng, keys: &'a Keys, reply: Option<&'a DynamicMessage>) -> Scope<'a> {
    Scope { number, call_id: new_uuid(), random, keys, reply }
}

fn has_field(message: &MessageDescriptor, path: &[String]) -> Result<()> {
    let Some((name, rest)) = path.split_first() else { return Ok(()) };
    let field = message.get_field_by_name(name).with_context(|| format!("{} has no field {name}", message.full_name()))?;
    match field.kind() {
        Kind::Message(inner) if !field.is_list() && !rest.is_empty() => has_field(&inner, rest),
        Kind::Message(_) => bail!("{name} is neither text nor number"),
        _ if field.is_list() || !rest.is_empty() => bail!("{name} is neither text nor number, or has no fields"),
        _ => Ok(()),
    }
}

fn encode(method: &MethodDescriptor, json: &str) -> Result<Bytes> {
    let message = call::parse_request(method.input(), json).with_context(|| format!("in {json}"))?;
    Ok(frame(&message.encode_to_vec()))
}

/// The texts of data given as JSON: an object, or an array of objects taken in turn.
///
/// # Errors
/// When it is neither.
pub fn texts(data: &Value) -> Result<Vec<String>> {
    match data {
        Value::Array(many) if many.iter().all(Value::is_object) => Ok(many.iter().map(Value::to_string).collect()),
        Value::Object(_) => Ok(vec![data.to_string()]),
        Value::Null => Ok(vec!["{}".to_owned()]),
        _ => bail!("data are an object, or a list of objects"),
    }
}

/// The same from a file or a flag, where actions may stand outside of strings.
pub fn texts_of(text: &str) -> Result<Vec<String>> {
    if !text.trim_start().starts_with('[') {
        return Ok(vec![text.to_owned()]);
    }
    texts(&serde_json::from_str(text).context("a list of data has to be JSON before its actions are evaluated")?)
}
