//! What callers in other languages are given: the contracts as a descriptor set, a service config, and an example.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Output,
};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::{Value, json};
use souk_tests::{Gate, PythonExample, Shop, System, repository};
use tonic::Code;

const PLACE_ORDER: &str = "/souk.orders.v1.CommandService/PlaceOrder";

/// What `souk call --descriptors` writes, into a folder that is gone when dropped.
struct Descriptors {
    folder: souk_devstack::TemporaryFolder,
    set: FileDescriptorSet,
}

impl Descriptors {
    fn write() -> Result<Self> {
        let folder = souk_devstack::TemporaryFolder::create()?;
        let file = folder.path().join("souk.binpb");
        let status = std::process::Command::new(souk_devstack::souk_program()?).args(["call", "--descriptors"]).arg(&file).status()?;
        ensure!(status.success(), "souk call --descriptors: {status}");
        Ok(Self { set: FileDescriptorSet::decode(fs::read(&file)?.as_slice())?, folder })
    }

    fn services(&self) -> BTreeSet<String> {
        let services = |file: &prost_types::FileDescriptorProto| {
            file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())).collect::<Vec<_>>()
        };
        self.set.file.iter().flat_map(services).collect()
    }
}

/// The services of all contracts below a folder, as their text says.
fn services_below(folder: &Path) -> Result<BTreeSet<String>> {
    let mut services = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            services.append(&mut services_below(&path)?);
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let package = text
            .lines()
            .find_map(|line| line.strip_prefix("package ")?.strip_suffix(';'))
            .with_context(|| format!("{} has no package", path.display()))?;
        services.extend(text.lines().filter_map(|line| Some(format!("{package}.{}", line.strip_prefix("service ")?.strip_suffix(" {")?))));
    }
    Ok(services)
}

#[test]
fn the_descriptor_set_has_every_service_and_everything_they_import() -> Result<()> {
    let descriptors = Descriptors::write()?;
    let services = services_below(&repository().join("proto/souk"))?;
    ensure!(services.len() > 8 && descriptors.services() == services, "{:?}, want {services:?}", descriptors.services());
    let files: BTreeSet<_> = descriptors.set.file.iter().map(|file| file.name()).collect();
    for file in &descriptors.set.file {
        ensure!(
            file.dependency.iter().all(|import| files.contains(import.as_str())),
            "{} imports what is not there: {:?}",
            file.name(),
            file.dependency
        );
    }
    Ok(())
}

#[test]
fn the_service_config_names_every_public_service_and_repeats_unavailable_only() -> Result<()> {
    let config: Value = serde_json::from_str(&fs::read_to_string(repository().join("proto/service_config.json"))?)?;
    let mut named = BTreeSet::new();
    for method in config["methodConfig"].as_array().context("no methodConfig")? {
        ensure!(method["retryPolicy"]["retryableStatusCodes"] == json!(["UNAVAILABLE"]), "{method:#}");
        named.extend(method["name"].as_array().context("no name")?.iter().filter_map(|name| name["service"].as_str().map(str::to_owned)));
    }
    let public = |service: &String| service.ends_with(".CommandService") || service.ends_with(".QueryService");
    let services: BTreeSet<_> = services_below(&repository().join("proto/souk"))?.into_iter().filter(public).collect();
    ensure!(named == services, "{named:?}, want {services:?}");
    Ok(())
}

#[tokio::test]
async fn stubs_are_made_from_the_descriptor_set_alone() -> Result<()> {
    let (example, descriptors) = (PythonExample::install().await?, Descriptors::write()?);
    let out = descriptors.folder.path().display();
    let mut arguments =
        vec![format!("--descriptor_set_in={out}/souk.binpb"), format!("--python_out={out}"), format!("--grpc_python_out={out}")];
    arguments.extend(descriptors.set.file.iter().map(|file| file.name().to_owned()).filter(|name| name.starts_with("souk/")));
    example.protoc(&arguments).await?;
    let stub = fs::read_to_string(descriptors.folder.path().join("souk/orders/v1/command_service_pb2_grpc.py"))?;
    ensure!(stub.contains("class CommandServiceStub"), "{stub}");
    Ok(())
}

/// The order the example placed, once every line it printed is what its reader is promised.
fn placed_order(output: &Output) -> Result<String> {
    let (printed, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {complaints}", output.status);
    let [placed, repeated, read, refused] = printed.lines().collect::<Vec<_>>()[..] else { bail!("not four lines: {printed}") };
    let order = placed.strip_prefix("placed   ").and_then(|rest| rest.strip_suffix("  EUR 98.00")).context(placed.to_owned())?;
    ensure!(repeated == format!("repeated {order}  the same order"), "{repeated}");
    // How far the process manager is by then is its own affair.
    let states = ["RESERVING", "AWAITING_PAYMENT"].map(|state| format!("read     {order}  ORDER_STATE_{state}"));
    ensure!(states.iter().any(|state| state == read), "{read}");
    ensure!(refused.starts_with("refused  INVALID_ARGUMENT  souk/REQUEST_ID_REUSED  "), "{refused}");
    Ok(order.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_does_what_it_says_and_repeats_calls_that_were_unavailable_and_no_others() -> Result<()> {
    let example = PythonExample::install().await?;
    let system = System::start(|_| {}).await?;
    let (command, query) = (system.stack.endpoint("command"), system.stack.endpoint("query"));
    let address = |endpoint: &str| endpoint.trim_start_matches("http://").to_owned();

    let order = placed_order(&example.run(&address(&command), &address(&query)).await?)?;
    let shown = Shop(system.session()?).see(&order).await?;
    ensure!(shown.customer_id == "python-customer" && shown.lines.len() == 1 && shown.lines[0].quantity == 2, "{shown:?}");

    // The first call of every method is not answered: nothing in what is printed tells of it.
    let fail_first = |_: &str, before| (before == 0).then_some(Code::Unavailable);
    let (commands, queries) = (Gate::start(&command, fail_first).await?, Gate::start(&query, fail_first).await?);
    placed_order(&example.run(&commands.address().to_string(), &queries.address().to_string()).await?)?;
    let calls: BTreeMap<_, _> = commands.calls().into_iter().chain(queries.calls()).collect();
    let once_more = [
        ("/souk.catalog.v1.CommandService/CreateProduct", 2),
        ("/souk.catalog.v1.CommandService/PublishProduct", 2),
        (PLACE_ORDER, 4),
        ("/souk.orders.v1.QueryService/GetOrder", 2),
        ("/souk.stock.v1.CommandService/ReceiveStock", 2),
    ];
    ensure!(calls == once_more.map(|(path, count)| (path.to_owned(), count)).into(), "{calls:?}");

    for code in [Code::Aborted, Code::ResourceExhausted, Code::DeadlineExceeded, Code::Internal, Code::Unknown] {
        let gate = Gate::start(&command, move |path, before| (path == PLACE_ORDER && before == 0).then_some(code)).await?;
        let output = example.run(&gate.address().to_string(), &address(&query)).await?;
        ensure!(!output.status.success() && gate.calls()[PLACE_ORDER] == 1, "{code:?} was repeated: {:?}", gate.calls());
    }
    Ok(())
}
