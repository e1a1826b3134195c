//! The chart's settings, as k8s/rendered has them, start the system.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use souk_devstack::{BackgroundCommand, ReplicaPorts, Service, ServiceProcess, Stack, TemporaryFolder, free_port, readiness, souk_program};
use souk_runtime::Settings;
use souk_tests::{System, http_get, repository, until};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// The files of a rendered ConfigMap, by name.
pub fn config_map(size: &str, name: &str) -> Result<BTreeMap<String, String>> {
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
        let audited = (size != "100").then_some("audit.toml");
        // One region of several.
        let copying = (size == "100m").then_some("replicator.toml");
        let wanted = audited.into_iter().chain(["command.toml", "projector.toml", "query.toml"]).chain(copying).chain(["saga.toml"]);
        ensure!(files.keys().eq(wanted), "{size}: {:?}", files.keys());
        for (name, text) in files.iter().chain(&config_map(size, "souk-migrate")?) {
            let settings = Settings::from_toml(&at(text)).with_context(|| format!("{size}: {name}"))?;
            let wanted = match name.as_str() {
                "command.toml" | "replicator.toml" | "saga.toml" => (write, 0),
                "query.toml" | "projector.toml" => (0, read),
                _ => (write, read),
            };
            ensure!((settings.write.databases.len(), settings.read.databases.len()) == wanted, "{size}: {name}");
            ensure!(!settings.process.migrate && settings.installation.partitions == 64, "{size}: {name}");
        }
    }
    Ok(())
}

/// One container, as its Deployment starts it, but on this machine's ports.
fn start(service: Service, settings: &Path, ports: &BTreeMap<String, u16>, logs: &Path) -> Result<ServiceProcess> {
    let name = service.name();
    // The values of a pod, in the quotes of the Deployment.
    let mut environment = BTreeMap::from([
        ("SOUK_process__replica".to_owned(), format!("\"souk-{name}-6f8d9c4b5-x2x4z\"")),
        ("SOUK_process__advertise_host".to_owned(), "\"127.0.0.1\"".to_owned()),
        ("SOUK_process__shutdown_grace".to_owned(), "20s".to_owned()),
        ("SOUK_process__threads".to_owned(), "1".to_owned()),
    ]);
    for (door, port) in ports.iter().filter(|(door, _)| door.split('_').next() == Some(name)) {
        environment.insert(format!("SOUK_listen__{door}"), format!("127.0.0.1:{port}"));
    }
    for peer in ["command", "command_internal"] {
        environment.insert(format!("SOUK_peers__{peer}"), format!("http://127.0.0.1:{}", ports[peer]));
    }
    let port = |door: &str| ports.get(&format!("{name}{door}")).copied();
    let doors = ReplicaPorts {
        public: port(""),
        internal: port("_internal").context("no internal port")?,
        ops: port("_ops").context("no port for operators")?,
    };
    ServiceProcess::start(service.into(), &doors, settings, logs, &environment)
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
    for service in Service::ALONE {
        let name = format!("{}.toml", service.name());
        containers.push(start(service, &write(&name, &files[&name])?, &ports, folder.path())?);
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
        container.wait_until_ready(PATIENCE).await?;
    }

    // What `helm test` runs.
    let url = |door: &str| format!("http://127.0.0.1:{}", ports[door]);
    run(vec!["demo".into(), format!("--command={}", url("command")), format!("--query={}", url("query"))])
        .await
        .map_err(|error| anyhow!("{error:#}\n{}", containers.iter().map(ServiceProcess::log_end).collect::<Vec<_>>().join("\n")))?;

    // The auditor, which the next size has.
    put(folder.path(), "read-1/replica-1", &stack.read_databases()[0].url)?;
    let settings = write("audit.toml", &config_map("10k", "souk-settings")?["audit.toml"])?;
    let ops = free_port()?;
    let arguments = auditor_arguments("10k")?.into_iter().map(|argument| {
        let argument = argument.replace("/etc/souk/audit.toml", &settings.display().to_string());
        if argument.starts_with("--ops=") { format!("--ops=127.0.0.1:{ops}") } else { argument }
    });
    // Streams are as large as the smaller size wants them.
    let auditor =
        BackgroundCommand::start(arguments, [("SOUK_nats__stream_max_bytes", "67108864"), ("TOKIO_WORKER_THREADS", "1")], folder.path())?;
    let metrics = until("an audit", PATIENCE, || async {
        let metrics = http_get(ops, "/metrics").await.unwrap_or_default();
        Ok(metrics.contains("souk_audit_finished_time_seconds ").then_some(metrics))
    })
    .await
    .map_err(|error| anyhow!("{error:#}\n{}", auditor.log_end()))?;
    ensure!(readiness(ops).await?.is_none() && metrics.lines().any(|line| line == "souk_audit_differences 0"), "{metrics}");
    ensure!(metrics.lines().any(|line| line == r#"souk_audit_checked{what="whole logs"} 64"#), "{metrics}");
    Ok(())
}

/// What the container of the auditor is started with.
fn auditor_arguments(size: &str) -> Result<Vec<String>> {
    let path = repository().join(format!("k8s/rendered/{size}/deployment-souk-audit.yaml"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (_, arguments) = text.split_once("args:\n").context("no args")?;
    Ok(arguments.lines().map_while(|line| line.trim().strip_prefix("- ")).map(str::to_owned).collect())
}
