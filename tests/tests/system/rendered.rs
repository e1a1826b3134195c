//! The chart's settings, as k8s/rendered has them, start the system.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use souk_devstack::{Service, Stack, TemporaryFolder, free_port, readiness, souk_program};
use souk_runtime::Settings;
use souk_tests::{System, repository, until};
use tokio::process::{Child, Command};

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// The files of a rendered ConfigMap, by name.
fn config_map(size: &str, name: &str) -> Result<BTreeMap<String, String>> {
    let path = repository().join(format!("k8s/rendered/{size}/configmap-{name}.yaml"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (_, data) = text.split_once("\ndata:\n").context("no data")?;
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut file = None;
    for line in data.lines() {
        if let Some(name) = line.strip_suffix(": |") {
            file = Some(files.entry(name.trim().to_owned()).or_default());
        } else if let Some(file) = &mut file {
            file.push_str(line.strip_prefix("    ").unwrap_or_default());
            file.push('\n');
        }
    }
    ensure!(!files.is_empty(), "{} has no file", path.display());
    Ok(files)
}

/// Puts `url` where the settings look for every secret of this name.
fn put(secrets: &Path, name: &str, text: &str) -> Result<()> {
    let path = secrets.join(name);
    fs::create_dir_all(path.parent().context("a secret has a folder")?)?;
    Ok(fs::write(path, text)?)
}

#[test]
fn the_settings_of_every_size_are_taken() -> Result<()> {
    let folder = TemporaryFolder::create()?;
    for name in ["token-key", "nats"] {
        put(folder.path(), name, if name == "nats" { "nats://nats:4222" } else { KEY })?;
    }
    for side in ["write", "read"] {
        for number in 1..=8 {
            for file in ["url", "pooled-url", "replica-1", "replica-2", "replica-3"] {
                put(folder.path(), &format!("{side}-{number}/{file}"), "postgres://u:p@h:5432/d")?;
            }
        }
    }
    let at = |text: &str| text.replace("/run/souk", &folder.path().display().to_string());
    for (size, write, read) in [("100", 1, 1), ("10k", 1, 1), ("1m", 2, 1), ("100m", 8, 4)] {
        let files = config_map(size, "souk-settings")?;
        ensure!(files.keys().eq(["command.toml", "projector.toml", "query.toml", "saga.toml"]), "{size}: {:?}", files.keys());
        for (name, text) in files.iter().chain(&config_map(size, "souk-migrate")?) {
            let settings = Settings::from_toml(&at(text)).with_context(|| format!("{size}: {name}"))?;
            let has = |name: &str| ["command.toml", "saga.toml", "migrate.toml"].contains(&name);
            let wanted = (if has(name) { write } else { 0 }, if name == "migrate.toml" || !has(name) { read } else { 0 });
            ensure!((settings.write.databases.len(), settings.read.databases.len()) == wanted, "{size}: {name}");
            ensure!(!settings.process.migrate && settings.installation.partitions == 64, "{size}: {name}");
        }
    }
    Ok(())
}

/// One container, as its Deployment starts it, but on this machine's ports.
struct Container {
    ops: u16,
    _process: Child,
}

fn start(service: Service, settings: &Path, ports: &BTreeMap<String, u16>) -> Result<Container> {
    let mut command = Command::new(souk_program()?);
    command.args(["serve", service.name(), "--config"]).arg(settings).stdin(Stdio::null()).kill_on_drop(true);
    // The values of a pod, in the quotes of the Deployment.
    command.env("SOUK_process__replica", format!("\"souk-{}-6f8d9c4b5-x2x4z\"", service.name()));
    command.env("SOUK_process__advertise_host", "\"127.0.0.1\"").env("SOUK_process__shutdown_grace", "20s");
    for (door, port) in ports.iter().filter(|(door, _)| door.split('_').next() == Some(service.name())) {
        command.env(format!("SOUK_listen__{door}"), format!("127.0.0.1:{port}"));
    }
    for peer in ["command", "command_internal"] {
        command.env(format!("SOUK_peers__{peer}"), format!("http://127.0.0.1:{}", ports[peer]));
    }
    Ok(Container { ops: ports[&format!("{}_ops", service.name())], _process: command.spawn()? })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_size_starts_migrates_and_carries_the_charts_own_test() -> Result<()> {
    let _turn = System::turn().await;
    // Postgres and NATS alone.
    let stack = Stack::temporary(|_| {}).await?;
    let folder = TemporaryFolder::create()?;
    put(folder.path(), "token-key", &format!("{KEY}\n"))?;
    put(folder.path(), "nats", &stack.nats.url())?;
    put(folder.path(), "write-1/url", &stack.write_databases()[0].url)?;
    put(folder.path(), "read-1/url", &stack.read_databases()[0].url)?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text.replace("/run/souk", &folder.path().display().to_string()))?;
        Ok(path)
    };
    let mut ports = BTreeMap::new();
    for door in ["command", "command_internal", "command_ops", "query", "query_internal", "query_ops"] {
        ports.insert(door.to_owned(), free_port()?);
    }
    for door in ["projector_internal", "projector_ops", "saga_internal", "saga_ops"] {
        ports.insert(door.to_owned(), free_port()?);
    }
    let files = config_map("100", "souk-settings")?;
    let mut containers = Vec::new();
    for service in Service::ALL {
        let name = format!("{}.toml", service.name());
        containers.push(start(service, &write(&name, &files[&name])?, &ports)?);
    }

    // The Job beside them.
    let migrate = write("migrate.toml", &config_map("100", "souk-migrate")?["migrate.toml"])?;
    let run = |arguments: Vec<String>| async move {
        let output = Command::new(souk_program()?).args(&arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let arguments = ["migrate", "--config", &migrate.display().to_string(), "--patience", "10m"].map(str::to_owned);
    run(arguments.to_vec()).await?;
    for container in &containers {
        until("ready", PATIENCE, || async { Ok(readiness(container.ops).await.is_ok_and(|lacks| lacks.is_none()).then_some(())) }).await?;
    }

    // What `helm test` runs.
    let url = |door: &str| format!("http://127.0.0.1:{}", ports[door]);
    run(vec!["demo".into(), format!("--command={}", url("command")), format!("--query={}", url("query"))]).await
}
