//! What watches Souk is proved like Souk: rules against made-up series, rules and dashboards against a running system.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use souk_client::Door;
use souk_devstack::{BackgroundCommand, Service, free_port};
use souk_proto::{
    catalog::v1::{GetProductRequest, SetPriceRequest},
    stock::v1::{ReceiveStockRequest, command_service_client::CommandServiceClient},
};
use souk_runtime::metrics::{CATALOGUE, Kind};
use souk_tests::{Prometheus, Shop, System, alerts, chart, closed_loop, eur, http_get, repository, until};
use tokio::process::Command;
use tonic::transport::Channel;
use uuid::Uuid;

/// As long as the load lasts: a busy machine is slow to have a refusal or a conflict of every kind.
const PATIENCE: Duration = Duration::from_secs(120);
const LOAD: Duration = Duration::from_secs(150);

#[tokio::test]
async fn every_alert_fires_on_its_series_and_is_silent_on_good_ones() -> Result<()> {
    let tests = files(&alerts().join("tests"), "yaml")?;
    let output = Command::new(Prometheus::program("promtool")).args(["test", "rules"]).args(&tests).output().await;
    let output = output.context("no promtool; run `just setup-tests`")?;
    ensure!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for file in files(&alerts(), "yaml")? {
        let name = file.file_stem().context("a name")?.to_string_lossy();
        let test = fs::read_to_string(alerts().join(format!("tests/{name}.yaml"))).with_context(|| format!("the test of {name}"))?;
        ensure!(test.contains("exp_labels:") && test.contains("exp_alerts: []"), "{name}: want a case that fires and one that does not");
        let runbook = fs::read_to_string(chart().join(format!("runbooks/{name}.md"))).with_context(|| format!("the runbook of {name}"))?;
        let headings: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        ensure!(headings == ["Meaning", "Impact", "Diagnosis", "Mitigation"], "{name}: {headings:?}");
    }
    Ok(())
}

#[test]
fn every_metric_is_described_and_every_description_has_its_metric() -> Result<()> {
    let mut named = BTreeSet::new();
    for root in ["crates", "services"] {
        for source in sources(&repository().join(root))? {
            if !source.ends_with("metrics/catalogue.rs") {
                named.extend(literals(&fs::read_to_string(source)?));
            }
        }
    }
    let described: BTreeSet<_> = CATALOGUE.iter().map(|metric| metric.name.to_owned()).collect();
    ensure!(named == described, "{:?}", named.symmetric_difference(&described).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn rules_dashboards_and_runbooks_name_only_metrics_that_there_are() -> Result<()> {
    let watching = [(alerts(), "yaml"), (chart().join("files/dashboards"), "json"), (chart().join("runbooks"), "md")];
    for (folder, ending) in watching {
        for file in files(&folder, ending)? {
            let text = fs::read_to_string(&file)?;
            let unknown: Vec<_> = metric_names(&text).into_iter().filter(|name| !is_known(name)).collect();
            ensure!(unknown.is_empty(), "{}: {unknown:?}", file.display());
        }
    }
    for expression in signals()?.keys() {
        let unknown: Vec<_> = metric_names(expression).into_iter().filter(|name| !is_known(name)).collect();
        ensure!(unknown.is_empty(), "GROWING.md: {unknown:?}");
    }
    Ok(())
}

/// All replicas of everything, under a load with refusals and conflicts in it.
#[tokio::test(flavor = "multi_thread")]
async fn every_expression_of_every_rule_and_panel_has_series_in_a_running_system() -> Result<()> {
    let system = System::start(|options| {
        for service in Service::ALONE {
            options.replicas(service, 2);
        }
        (options.write_shards, options.read_shards, options.read_replicas) = (Some(2), Some(2), Some(1));
        // Little is let in, so that some are refused.
        options.set("command.queue_wait", "5 ms").set("command.batch_commands", 2);
    })
    .await?;
    let (auditor, ops) = auditor(&system)?;
    let prometheus = Prometheus::start(&system, &[("souk-auditor", ops)]).await?;
    let load = tokio::spawn(load(Shop(system.session()?), system.client()?.channel(Door::Command).context("a door")?));

    let rules = prometheus.rules().await?;
    ensure!(rules.len() >= files(&alerts(), "yaml")?.len(), "{rules:?}");
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for rule in &rules {
        wanted.insert(without_thresholds(&rule.expression), rule.name.clone());
        wanted.extend(selectors(&rule.expression).into_iter().map(|selector| (selector, rule.name.clone())));
    }
    wanted.extend(panels()?);
    wanted.extend(signals()?);
    // This is one region: nothing is copied.
    wanted.retain(|expression, _| !expression.contains("souk_replicator_"));
    println!("{} rules, {} expressions", rules.len(), wanted.len());
    let wanted = tokio::sync::Mutex::new(wanted);
    let found = until("every expression has series", PATIENCE, || async {
        let mut wanted = wanted.lock().await;
        for expression in wanted.keys().cloned().collect::<Vec<_>>() {
            if prometheus.query(&expression).await?.iter().any(|(_, value)| value.is_finite()) {
                wanted.remove(&expression);
            }
        }
        Ok(wanted.is_empty().then_some(()))
    })
    .await;
    found.with_context(|| format!("{:#?}\n{}", wanted.try_lock().map(|wanted| wanted.clone()), auditor.log_end()))?;

    // What is exposed is described, and nothing that is wrong was found on the way.
    for service in Service::ALONE {
        let exposed = http_get(system.stack.ports_of(service)?.ops, "/metrics").await?;
        let types = exposed.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let bare: Vec<_> = types.filter(|name| !exposed.contains(&format!("# HELP {name} "))).collect();
        ensure!(bare.is_empty(), "{service:?}: {bare:?}");
    }
    let differences = prometheus.query("souk_audit_differences").await?;
    ensure!(differences.iter().all(|(_, value)| *value == 0.0), "{differences:?}");
    load.abort();
    Ok(())
}

/// `souk audit --every`, which ends with what is returned.
fn auditor(system: &System) -> Result<(BackgroundCommand, u16)> {
    let ops = free_port()?;
    let arguments = ["audit", "--every", "2s", "--ops", &format!("127.0.0.1:{ops}")];
    let run_file = [("SOUK_RUN_FILE", system.stack.data().join("run.json"))];
    Ok((BackgroundCommand::start(arguments, run_file, system.stack.logs())?, ops))
}

/// Orders, stale etags, reads of what was just written and of what is not there, beside more deliveries than are let in.
async fn load(shop: Shop, channel: Channel) -> Result<()> {
    const PRODUCTS: u64 = 8;
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 1_000).await?;
    }
    let deliveries = closed_loop(32, LOAD, move |number| {
        let channel = channel.clone();
        async move {
            let product_id = format!("p-{}", number % PRODUCTS);
            let request = ReceiveStockRequest { request_id: Uuid::now_v7().to_string(), product_id, quantity: 1 };
            CommandServiceClient::new(channel).receive_stock(request).await.map(drop)
        }
    });
    let shopping = async {
        for number in 0.. {
            let (customer, product) = (format!("c-{}", number % 100), format!("p-{}", number % PRODUCTS));
            let order = shop.order(&customer, &product, 1, false).await?;
            shop.see(&order.order_id).await?;
            shop.stock(&product).await?;
            let nothing = GetProductRequest { product_id: format!("none-{number}"), ..Default::default() };
            shop.0.query(nothing).await.expect_err("there is none");
            let price = SetPriceRequest { product_id: product, price: Some(eur(100)), etag: "1-999".into(), ..Default::default() };
            shop.0.command(price).await.expect_err("stale");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        _ = deliveries => Ok(()),
        outcome = shopping => outcome,
    }
}

/// The expression with each comparison telling of every series instead of dropping those that are fine, and all of it now.
fn without_thresholds(expression: &str) -> String {
    let now = expression.split(" offset ").enumerate().map(|(index, part)| match index {
        0 => part,
        _ => part.trim_start_matches(|c: char| c.is_ascii_alphanumeric()),
    });
    now.collect::<String>().replace(" > ", " > bool ")
}

/// The series an expression is made of, each by itself.
fn selectors(expression: &str) -> Vec<String> {
    let names = starts_of_metrics(expression).into_iter().map(|start| {
        let rest = &expression[start..];
        let name = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        let labels = if rest[name..].starts_with('{') { rest.find('}').map_or(name, |end| end + 1) } else { name };
        rest[..labels].to_owned()
    });
    names.collect()
}

/// The expressions of all panels with their variables filled in, and where they are.
fn panels() -> Result<BTreeMap<String, String>> {
    let mut expressions = BTreeMap::new();
    for file in files(&chart().join("files/dashboards"), "json")? {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
        for panel in dashboard["panels"].as_array().context("panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().context("an expression")?;
                let filled = expression.replace("$__rate_interval", "15s").replace("$namespace", ".*").replace("$job", ".*");
                ensure!(!filled.contains('$'), "{filled}");
                expressions.insert(filled, format!("{}: {}", dashboard["title"], panel["title"]));
            }
        }
    }
    Ok(expressions)
}

/// The expressions by which an operator sees that it is time to grow, and where they are.
fn signals() -> Result<BTreeMap<String, String>> {
    let page = fs::read_to_string(chart().join("GROWING.md"))?;
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let code = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|code| code.contains("souk_"));
    let signals: BTreeMap<_, _> = code.map(|code| (code.to_owned(), "GROWING.md".to_owned())).collect();
    ensure!(signals.len() >= 5, "{signals:?}");
    Ok(signals)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

fn starts_of_metrics(text: &str) -> Vec<usize> {
    let starts = text.match_indices("souk").map(|(start, _)| start);
    let begins = |start: &usize| !text[..*start].ends_with(is_name);
    let goes_on = |start: &usize| text[start + 4..].starts_with(['_', ':']);
    starts.filter(begins).filter(goes_on).collect()
}

/// Names of metrics in a text, without those of recordings.
fn metric_names(text: &str) -> BTreeSet<String> {
    let names = starts_of_metrics(text).into_iter().map(|start| {
        let rest = &text[start..];
        rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())].to_owned()
    });
    names.filter(|name| !name.contains(':')).collect()
}

fn is_known(name: &str) -> bool {
    CATALOGUE.iter().any(|metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|ending| name.strip_suffix(ending) == Some(metric.name)),
        Kind::Counter | Kind::Gauge => name == metric.name,
    })
}

/// What is quoted in a source and looks like a metric, as tables of migrations do, too.
fn literals(source: &str) -> BTreeSet<String> {
    let quoted = source.split('"').filter(|text| text.starts_with("souk_") && !text.ends_with("_migration") && text.chars().all(is_name));
    quoted.map(str::to_owned).collect()
}

/// The sources below a folder, without tests.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !["tests", "examples", "target"].iter().any(|name| path.ends_with(name)) {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|found| found == ending));
    files.sort();
    ensure!(!files.is_empty(), "{} has no .{ending}", folder.display());
    Ok(files)
}
