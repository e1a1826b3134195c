use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use souk_devstack::{Replica, Service, TemporaryFolder, free_port, souk_folder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{System, repository, until};

const READY_PATIENCE: Duration = Duration::from_secs(30);

/// A real Prometheus that scrapes every process of a system each second and evaluates the chart's rules as often. It ends
/// when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _process: Child,
    _folder: TemporaryFolder,
}

/// A rule as Prometheus understood it.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub expression: String,
}

impl Prometheus {
    /// Starts one beside `system`; `others` are further ops ports by the name of their job.
    ///
    /// # Errors
    /// When there is none ([`Prometheus::program`]), or it does not become ready.
    pub async fn start(system: &System, others: &[(&str, u16)]) -> Result<Self> {
        let folder = TemporaryFolder::create()?;
        let (port, config) = (free_port()?, folder.path().join("prometheus.yml"));
        // JSON is YAML.
        fs::write(&config, configuration(system, others)?.to_string())?;
        let log = fs::File::create(folder.path().join("prometheus.log"))?;
        let process = Command::new(Self::program("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("no prometheus; run `just setup-tests`")?;
        let prometheus = Self { port, _process: process, _folder: folder };
        let ready = until("Prometheus is ready", READY_PATIENCE, || async { Ok(prometheus.get("/-/ready").await.ok()) }).await;
        ready.with_context(|| fs::read_to_string(prometheus._folder.path().join("prometheus.log")).unwrap_or_default())?;
        Ok(prometheus)
    }

    /// One of its programs, as `just setup-tests` has put it here, else that on the PATH.
    pub fn program(name: &str) -> PathBuf {
        let downloaded = souk_folder().join("tools/prometheus/bin").join(name);
        if downloaded.is_file() { downloaded } else { name.into() }
    }

    /// The chart's rules, one alert or recording a file's line.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let reply = self.ask("/api/v1/rules").await?;
        let groups = reply["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(rules.map(|rule| Rule { name: text(&rule["name"]), expression: text(&rule["query"]) }).collect())
    }

    /// The series an expression has now, each with labels and value.
    ///
    /// # Errors
    /// When it is no expression.
    pub async fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let reply = self.ask(&format!("/api/v1/query?query={}", encoded(expression))).await.with_context(|| expression.to_owned())?;
        let series = reply["result"].as_array().into_iter().flatten();
        let value = |series: &Value| series["value"][1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN);
        Ok(series.map(|series| (series["metric"].clone(), value(series))).collect())
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let reply: Value = serde_json::from_str(&self.get(path).await?)?;
        ensure!(reply["status"] == "success", "{reply}");
        Ok(reply["data"].clone())
    }

    async fn get(&self, path: &str) -> Result<String> {
        get(self.port, path).await
    }
}

/// What a port of this machine answers to `GET path`.
///
/// # Errors
/// When nobody answers.
pub async fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.split_whitespace().nth(1).is_some_and(|code| code == "200" || code == "400"), "{head}");
    Ok(body.to_owned())
}

/// A job per service and a pod per replica, as the chart's ServiceMonitor makes them.
fn configuration(system: &System, others: &[(&str, u16)]) -> Result<Value> {
    let mut jobs = Vec::new();
    for service in Service::ALONE {
        let replicas: Vec<_> = system.stack.replicas_of(service).collect();
        let target = |replica: Replica| Ok(target(&format!("{replica}"), system.stack.ports_of(replica)?.ops));
        let targets = replicas.into_iter().map(target).collect::<Result<Vec<_>>>()?;
        jobs.push(json!({"job_name": format!("souk-{}", service.name()), "static_configs": targets}));
    }
    let others = others.iter().map(|(name, port)| json!({"job_name": name, "static_configs": [target(name, *port)]}));
    jobs.extend(others);
    Ok(json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [alerts().join("*.yaml")],
        "scrape_configs": jobs,
    }))
}

fn target(pod: &str, port: u16) -> Value {
    json!({"targets": [format!("127.0.0.1:{port}")], "labels": {"namespace": "souk", "pod": pod}})
}

/// The folder of the chart's rule files.
pub fn alerts() -> PathBuf {
    chart().join("files/alerts")
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    repository().join("helm/souk")
}

fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric();
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
