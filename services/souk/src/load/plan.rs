use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use souk_load::{Rpc, ServiceId, Target};

use super::{
    Args,
    keys::Keys,
    messages::{Messages, find_method, texts, texts_of},
    mix::{Mix, Step},
    settings::{Settings, StepSettings},
    threshold::Threshold,
};
use crate::system;

/// A run that is ready to start: all is connected, and each kind of request was made once.
pub struct Plan {
    pub target: Target,
    pub mix: Mix,
    pub thresholds: Vec<Threshold>,
    /// Where the calls go.
    pub hosts: String,
}

/// What is to be sent, checked against the descriptors, before anything is connected.
pub struct Calls {
    pub keys: Arc<Keys>,
    pub kinds: Vec<Call>,
}

pub struct Call {
    pub name: String,
    pub weight: f64,
    pub messages: Messages,
    pub after: Option<usize>,
    pub thresholds: Vec<String>,
}

impl Calls {
    /// # Errors
    /// When a method does not exist, or data are no requests of it.
    pub fn new(settings: &Settings) -> Result<Self> {
        let pool = pool(settings)?;
        let keys = Arc::new(Keys::new(&settings.keys)?);
        let kinds = if settings.step.is_empty() {
            vec![single(settings, &pool, &keys)?]
        } else {
            let steps = settings.step.iter().map(|step| {
                let texts = texts(&step.data)?;
                call(step, &settings.step, &texts, &pool, &keys).with_context(|| format!("in the step {}", step.name()))
            });
            steps.collect::<Result<_>>()?
        };
        let calls = Self { keys, kinds };
        calls.check()?;
        Ok(calls)
    }

    fn check(&self) -> Result<()> {
        for (index, call) in self.kinds.iter().enumerate() {
            let before = call.after.map(|before| self.kinds[before].messages.method());
            call.messages.check(&self.keys, before).with_context(|| format!("in the step {}", call.name))?;
            // Along the steps before it, one comes to an end.
            let chain = std::iter::successors(Some(index), |step| self.kinds[*step].after);
            ensure!(chain.take(self.kinds.len() + 1).count() <= self.kinds.len(), "the step {} comes after itself", call.name);
        }
        ensure!(self.kinds.iter().any(|call| call.weight > 0.0), "no step has a weight");
        Ok(())
    }
}

impl StepSettings {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.call)
    }
}

fn pool(settings: &Settings) -> Result<DescriptorPool> {
    match settings.protoset.as_deref().filter(|file| !file.is_empty()) {
        Some(file) => {
            let bytes = fs::read(file).with_context(|| format!("cannot read {file}"))?;
            DescriptorPool::decode(&bytes[..]).with_context(|| format!("{file} is no descriptor set"))
        }
        None => DescriptorPool::decode(souk_proto::DESCRIPTORS).context("the contracts"),
    }
}

/// The only call of a configuration of ghz.
fn single(settings: &Settings, pool: &DescriptorPool, keys: &Keys) -> Result<Call> {
    let name = settings.call.as_deref().context("what is to be called? See --call, or --config")?;
    let data = match (&settings.data_text, &settings.data, settings.data_file.as_deref().filter(|file| !file.is_empty())) {
        (Some(text), _, _) => texts_of(text)?,
        (None, Some(data), _) => texts(data)?,
        (None, None, Some(file)) => texts_of(&fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?)?,
        (None, None, None) => vec!["{}".to_owned()],
    };
    let messages = Messages::new(find_method(pool, name)?, &data, keys)?;
    Ok(Call { name: messages.method().name().to_owned(), weight: 1.0, messages, after: None, thresholds: Vec::new() })
}

fn call(step: &StepSettings, steps: &[StepSettings], data: &[String], pool: &DescriptorPool, keys: &Keys) -> Result<Call> {
    ensure!(step.weight.is_finite() && step.weight >= 0.0, "a weight is at least 0, not {}", step.weight);
    let after = step.after.as_deref().map(|name| {
        let found = steps.iter().position(|step| step.name() == name);
        found.with_context(|| format!("there is no step called {name:?} to come after"))
    });
    Ok(Call {
        name: step.name().to_owned(),
        weight: step.weight,
        messages: Messages::new(find_method(pool, &step.call)?, data, keys)?,
        after: after.transpose()?,
        thresholds: step.thresholds.clone(),
    })
}

impl Plan {
    pub async fn new(settings: &Settings, args: &Args) -> Result<Self> {
        let Calls { keys, kinds } = Calls::new(settings)?;
        let mut thresholds = settings.thresholds.iter().map(|text| Threshold::parse(text, None)).collect::<Result<Vec<_>>>()?;
        for (index, call) in kinds.iter().enumerate() {
            thresholds.extend(call.thresholds.iter().map(|text| Threshold::parse(text, Some(index))).collect::<Result<Vec<_>>>()?);
        }
        let mut services = Services::new(settings, &args.target)?;
        let mut steps = Vec::new();
        for call in kinds {
            let rpc = services.rpc(settings, call.messages.method()).await?;
            steps.push(Step::new(call.name, call.weight, rpc, call.messages, call.after));
        }
        let mix = Mix::new(steps, keys, args.seed.unwrap_or_else(rand::random));
        Ok(Self {
            hosts: services.connected.iter().map(|(host, _)| host.as_str()).collect::<Vec<_>>().join(" "),
            target: services.target,
            mix,
            thresholds,
        })
    }
}

/// The services that calls go to, connected when the first call of each is met.
struct Services {
    target: Target,
    connected: Vec<(String, ServiceId)>,
    /// The one host, or the running system.
    place: Place,
}

enum Place {
    Host(String),
    System(Box<system::System>),
}

impl Services {
    fn new(settings: &Settings, target: &system::Target) -> Result<Self> {
        let place = match settings.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => Place::Host(host.to_owned()),
            None => Place::System(Box::new(target.find()?)),
        };
        Ok(Self { target: Target::default(), connected: Vec::new(), place })
    }

    async fn rpc(&mut self, settings: &Settings, method: &MethodDescriptor) -> Result<Rpc> {
        let service = method.parent_service();
        let host = match &self.place {
            Place::Host(host) => host.clone(),
            Place::System(system) if service.name() == "CommandService" => system.command.clone(),
            Place::System(system) if service.name() == "QueryService" => system.query.clone(),
            Place::System(_) => bail!("{} has no public port; name its host", service.full_name()),
        };
        let id = match self.connected.iter().find(|(known, _)| *known == host) {
            Some((_, id)) => *id,
            None => {
                let id = self.target.connect(&host, settings.connections.unwrap_or(1)).await?;
                self.connected.push((host, id));
                id
            }
        };
        let mut rpc = self.target.rpc(id, &format!("/{}/{}", service.full_name(), method.name()))?;
        rpc = rpc.deadline(settings.timeout.map(|timeout| timeout.0).filter(|time| !time.is_zero()).unwrap_or(Duration::from_secs(20)));
        for (name, value) in &settings.metadata {
            ensure!(!value.contains("{{"), "metadata {name}: actions work in data only");
            let bad = || format!("{name}: {value:?} is no metadata");
            rpc = rpc.metadata(name.parse().with_context(bad)?, value.parse().with_context(bad)?);
        }
        Ok(rpc)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/load").join(name)
    }

    /// Reads a file as if from the root of the repository, where its users are.
    fn read(file: &Path) -> Settings {
        let mut settings = Settings::read(file).unwrap_or_else(|error| panic!("{error:#}"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for path in [&mut settings.protoset, &mut settings.data_file].into_iter().flatten() {
            *path = root.join(&*path).to_str().expect("text").to_owned();
        }
        settings
    }

    fn configurations(name: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(folder(name)).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|ending| ending == "json" || ending == "toml")).collect();
        files.sort();
        files
    }

    #[test]
    fn every_file_for_ghz_calls_what_the_contracts_have() {
        let files = configurations("ghz");
        assert!(files.len() >= 15, "{files:?}");
        for file in files {
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            let settings = read(&file);
            let calls = Calls::new(&settings).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            settings.pace().unwrap_or_else(|error| panic!("{name}: {error:#}"));
            // Stock ghz knows full names only, and no actions of ours.
            let method = calls.kinds[0].messages.method();
            let call = settings.call.as_deref().expect("a call");
            assert_eq!(call, format!("{}/{}", method.parent_service().full_name(), method.name()), "{name}");
            assert!(settings.step.is_empty() && settings.keys.is_empty() && settings.thresholds.is_empty(), "{name}");
            assert!(settings.protoset.is_some() && settings.host.is_some(), "{name} needs no reflection and no flags");
            let rate = settings.rps > 0.0 || settings.load_schedule.is_some();
            assert_eq!(rate, settings.asynchronous, "{name}: those with a rate do not wait for replies");
            let port = if method.parent_service().name() == "CommandService" { "50051" } else { "50052" };
            assert!(settings.host.as_deref().is_some_and(|host| host.ends_with(port)), "{name}: {method:?} is not served there");
        }
    }

    #[test]
    fn every_data_file_is_used() {
        let used: Vec<_> = configurations("ghz").iter().filter_map(|file| read(file).data_file).collect();
        for file in configurations("ghz/data") {
            let name = file.file_name().expect("a name").to_str().expect("text");
            assert!(used.iter().any(|used| used.ends_with(&format!("/{name}"))), "{name} is used by no configuration");
        }
    }

    #[test]
    fn the_protoset_for_ghz_is_the_contracts() {
        let stored = fs::read(folder("ghz/souk.protoset")).expect("a protoset");
        assert!(
            stored == souk_proto::DESCRIPTORS,
            "out of date: target/debug/souk call --descriptors tests/load/ghz/souk.protoset writes it anew"
        );
    }

    #[test]
    fn the_scenario_of_the_shop_is_one_part_commands_and_nine_parts_queries() {
        let settings = read(&folder("scenarios/shop.toml"));
        let calls = Calls::new(&settings).unwrap_or_else(|error| panic!("{error:#}"));
        let weight = |service: &str| -> f64 {
            let kinds = calls.kinds.iter().filter(|call| call.messages.method().parent_service().name() == service);
            kinds.map(|call| call.weight).sum()
        };
        assert_eq!((weight("CommandService"), weight("QueryService")), (10.0, 90.0));
        assert!(calls.kinds.iter().any(|call| call.after.is_some()), "it has a chain");
        settings.thresholds.iter().for_each(|text| drop(Threshold::parse(text, None).expect("a threshold")));
    }

    #[test]
    fn a_step_that_cannot_be_sent_is_refused_before_the_run() {
        let refused = |toml: &str| {
            let settings: Settings = toml::from_str(toml).expect("settings");
            let error = Calls::new(&settings).err().unwrap_or_else(|| panic!("{toml} was taken"));
            format!("{error:#}")
        };
        let step = |call: &str, more: &str| format!("[[step]]\ncall = '{call}'\nweight = 1\n{more}\n");
        assert!(refused("").contains("what is to be called"));
        assert!(refused(&step("catalog/GetProducts", "")).contains("no method"));
        assert!(refused(&step("cart/WatchCart", "")).contains("is a stream"));
        assert!(refused(&step("cart/GetCart", "data = { customer = 'c-1' }")).contains("customer"));
        assert!(refused(&step("cart/GetCart", "data = { customer_id = '{{.Reply.customer_id}}' }")).contains("no reply before"));
        assert!(refused(&step("cart/GetCart", "after = 'nothing'")).contains("no step called \"nothing\""));
        assert!(refused(&step("cart/GetCart", "after = 'cart/GetCart'")).contains("comes after itself"));
        let chain =
            step("cart/GetCart", "") + &step("cart/Checkout", "after = 'cart/GetCart'\ndata = { customer_id = '{{.Reply.basket}}' }");
        assert!(refused(&chain).contains("has no field basket"));
    }
}
