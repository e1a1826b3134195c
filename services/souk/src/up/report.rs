//! What `souk up` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::unistd::dup2_stderr;
use souk_devstack::RunFile;

/// Progress for people, the result for people or scripts. While it lives stderr of this process is its log file.
pub struct Report {
    json: bool,
    begin: Instant,
    terminal: File,
}

impl Report {
    /// Takes over stderr.
    pub fn new(json: bool, log: PathBuf) -> Result<Self> {
        let folder = log.parent().context("a log lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let terminal = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let log = File::options().create(true).append(true).open(&log).with_context(|| format!("cannot open {}", log.display()))?;
        dup2_stderr(&log).context("cannot send the log to its file")?;
        Ok(Self { json, begin: Instant::now(), terminal })
    }

    /// One line of progress.
    pub fn progress(&self, line: &str) {
        let line = format!("{:5.1} s  {line}\n", self.seconds());
        // Nobody may be watching any more.
        let _ = if self.json { (&self.terminal).write_all(line.as_bytes()) } else { io::stdout().write_all(line.as_bytes()) };
    }

    /// The block of addresses, or the JSON object.
    pub fn ready(&self, facts: &RunFile, run_file: &Path) -> Result<()> {
        let text = if self.json {
            serde_json::to_string(facts)? + "\n"
        } else if facts.others.is_empty() {
            self.block(facts, run_file)
        } else {
            self.regions(facts, run_file)
        };
        let mut out = io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
    }

    fn regions(&self, facts: &RunFile, run_file: &Path) -> String {
        let names: Vec<_> = facts.regions().map(|region| region.region.as_str()).collect();
        let (first, second) = (names[0], names[1]);
        let mut text =
            format!("\nSouk is up in regions {}, {:.1} s after its start. Ctrl-C stops it in order.\n", names.join(", "), self.seconds());
        for region in facts.regions() {
            let addresses = &region.addresses;
            text.push_str(&format!(
                "\n  {name:<10} command {command}   query {query}   gRPC, with reflection\n  {empty:<10} internal {internal}\n  {empty:<10} \
                 ops {ops}\n  {empty:<10} postgres {postgres}   nats {nats}   logs {logs}\n",
                name = region.region,
                empty = "",
                command = addresses.command.replace(',', " "),
                query = addresses.query.replace(',', " "),
                internal = by_service(&addresses.internal),
                ops = by_service(&addresses.ops),
                postgres = port(&region.postgres.address),
                nats = port(&region.nats.address),
                logs = shown(&region.logs),
            ));
        }
        text + &format!(
            "\nIds like {second}.lamp are at home in {second}, ids that name no region in {first}. Urls and processes are in {run_file}.\n\n\
             Try, in another terminal:\n  \
             just demo --write {first} --read {second}\n  \
             just souk status\n  \
             just souk region link {first} {second} --latency 80ms\n  \
             just souk region link {first} {second} --down\n  \
             just souk region link {first} {second} --up\n  \
             just souk audit --all-regions\n\n",
            run_file = shown(run_file),
        )
    }

    fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn block(&self, facts: &RunFile, run_file: &Path) -> String {
        let addresses = &facts.addresses;
        let ops: BTreeSet<&String> = addresses.ops.values().collect();
        let ops = if ops.len() == 1 { addresses.ops["command-1"].clone() } else { format!("127.0.0.1, {}", by_service(&addresses.ops)) };
        let databases =
            |side: &[souk_devstack::DatabaseUrl]| side.iter().map(|database| database.name.as_str()).collect::<Vec<_>>().join(" ");
        let standbys: String = facts.standbys.iter().map(|standby| format!(" {}", port(&standby.address))).collect();
        let standbys = if standbys.is_empty() { standbys } else { format!(", standbys{standbys}") };
        format!(
            "\nSouk is up in region {region}, {seconds:.1} s after its start. Ctrl-C stops it in order.\n\n  \
             command    {command}   gRPC, with reflection\n  \
             query      {queries}   gRPC, with reflection\n  \
             internal   127.0.0.1, {internal}\n  \
             ops        {ops}   HTTP: /livez /readyz /metrics\n  \
             postgres   {postgres}   {write} {read}{standbys}; urls in {run_file}\n  \
             nats       {nats}\n  \
             logs       {logs}\n  \
             data       {data}\n\n\
             Try, in another terminal:\n  \
             just demo\n  \
             just souk call souk.catalog.v1.CommandService/CreateProduct '{{\"product_id\":\"lamp\",\"details\":{{\"title\":\"Lamp\"}}}}'\n  \
             ghz --insecure --call souk.catalog.v1.QueryService/GetProduct -d '{{\"product_id\":\"lamp\"}}' -c 50 -z 10s {query}\n\n",
            region = facts.region,
            seconds = self.seconds(),
            command = addresses.command.replace(',', "  "),
            queries = addresses.query.replace(',', "  "),
            query = addresses.query.split(',').next().unwrap_or_default(),
            internal = by_service(&addresses.internal),
            postgres = facts.postgres.address,
            write = databases(&facts.write_databases),
            read = databases(&facts.read_databases),
            standbys = standbys,
            nats = facts.nats.address,
            logs = shown(&facts.logs),
            data = shown(&facts.data),
            run_file = shown(run_file),
        )
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if dup2_stderr(&self.terminal).is_err() {
            tracing::warn!("stderr stays the log file");
        }
    }
}

/// `command 50061 50161, query 50062` for the addresses of replicas.
fn by_service(addresses: &BTreeMap<String, String>) -> String {
    let mut ports: BTreeMap<&str, String> = BTreeMap::new();
    for (replica, address) in addresses {
        let service = replica.split('-').next().unwrap_or(replica);
        let line = ports.entry(service).or_insert_with(|| service.to_owned());
        line.push(' ');
        line.push_str(port(address));
    }
    ports.into_values().collect::<Vec<_>>().join(", ")
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or(address)
}

/// A path as short as it is from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
