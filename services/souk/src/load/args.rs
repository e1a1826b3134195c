use std::{io::Read, path::PathBuf};

use anyhow::{Context, Result, ensure};

use super::settings::{Settings, Time};
use crate::system::Target;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Flags are those of ghz and win over the file. With a rate (-r, --load-schedule) the loop is open: calls are sent at \
                        their times whatever became of those before, and latency counts from then. Without, so many callers (-c) each \
                        send one call at a time.\nThe exit code is 1 when a threshold was missed."
)]
pub struct Args {
    /// Where to send the calls [default: the services of the running system]
    #[arg(value_name = "HOST:PORT")]
    host: Option<String>,
    /// A configuration of ghz (JSON or TOML), or a scenario, which mixes calls
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The method: package.Service/Method, or as for souk call
    #[arg(long, value_name = "METHOD")]
    call: Option<String>,
    /// Descriptors to take the method from [default: Souk's own]
    #[arg(long, value_name = "FILE")]
    protoset: Option<String>,
    /// The request as JSON, with the actions of ghz such as {{.RequestNumber}} or {{randomInt 1 9}}; "@" reads it from stdin
    #[arg(short, long, value_name = "JSON")]
    data: Option<String>,
    /// The same from a file
    #[arg(short = 'D', long, value_name = "FILE")]
    data_file: Option<String>,
    /// Metadata as a JSON object
    #[arg(short, long, value_name = "JSON")]
    metadata: Option<String>,
    /// Calls per second
    #[arg(short, long, value_name = "N")]
    rps: Option<f64>,
    /// How the rate changes: const, step, or line, which steps each second
    #[arg(long, value_name = "SCHEDULE")]
    load_schedule: Option<String>,
    /// Calls per second to start with
    #[arg(long, value_name = "N")]
    load_start: Option<f64>,
    /// Calls per second to end with
    #[arg(long, value_name = "N")]
    load_end: Option<f64>,
    /// By how much the rate changes at each step
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    load_step: Option<f64>,
    /// How long a step lasts
    #[arg(long, value_name = "TIME")]
    load_step_duration: Option<Time>,
    /// After which the rate stays
    #[arg(long, value_name = "TIME")]
    load_max_duration: Option<Time>,
    /// Calls under way at a time, at most [default: 50]
    #[arg(short, long, value_name = "N")]
    concurrency: Option<usize>,
    /// Let up to 2000 calls be under way, when there is a rate
    #[arg(long = "async")]
    asynchronous: bool,
    /// How long to send
    #[arg(short = 'z', long, value_name = "TIME")]
    duration: Option<Time>,
    /// How long to send at most, when a number of calls is given
    #[arg(short = 'x', long, value_name = "TIME")]
    max_duration: Option<Time>,
    /// How many calls to send [default: 200]
    #[arg(short = 'n', long, value_name = "N")]
    total: Option<u64>,
    /// Connections to each service [default: 1]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Time for each call [default: 20s]
    #[arg(short, long, value_name = "TIME")]
    timeout: Option<Time>,
    /// What to print: summary, json as ghz has it, or pretty
    #[arg(short = 'O', long, value_name = "FORMAT", value_parser = ["summary", "json", "pretty"])]
    format: Option<String>,
    /// Where to write it [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// A name for the run
    #[arg(long)]
    name: Option<String>,
    /// What the run has to keep to, such as "p99 < 50ms", "errors < 0.1 %", "rate > 950/s"
    #[arg(long = "threshold", value_name = "RULE")]
    thresholds: Vec<String>,
    /// Draw the same keys and random numbers as another run with this seed
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

impl Args {
    /// What the file says, and the flags.
    pub fn settings(&self) -> Result<Settings> {
        let mut settings = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        fn over<T: Clone>(setting: &mut T, flag: &Option<T>) {
            if let Some(flag) = flag {
                *setting = flag.clone();
            }
        }
        fn over_some<T: Clone>(setting: &mut Option<T>, flag: &Option<T>) {
            if flag.is_some() {
                setting.clone_from(flag);
            }
        }
        over_some(&mut settings.host, &self.host);
        over_some(&mut settings.protoset, &self.protoset);
        over_some(&mut settings.load_schedule, &self.load_schedule);
        over_some(&mut settings.concurrency, &self.concurrency);
        over_some(&mut settings.connections, &self.connections);
        over_some(&mut settings.timeout, &self.timeout);
        over_some(&mut settings.format, &self.format);
        over_some(&mut settings.output, &self.output);
        over_some(&mut settings.name, &self.name);
        over(&mut settings.rps, &self.rps);
        over(&mut settings.load_start, &self.load_start);
        over(&mut settings.load_end, &self.load_end);
        over(&mut settings.load_step, &self.load_step);
        over(&mut settings.load_step_duration, &self.load_step_duration);
        over(&mut settings.load_max_duration, &self.load_max_duration);
        over(&mut settings.max_duration, &self.max_duration);
        settings.asynchronous |= self.asynchronous;
        settings.thresholds.extend(self.thresholds.iter().cloned());
        // The one given on the command line is meant, not the other one of the file.
        if let Some(total) = self.total {
            settings.total = Some(total);
            settings.duration = Time::default();
        }
        over(&mut settings.duration, &self.duration);
        self.call_and_data(&mut settings)?;
        Ok(settings)
    }

    fn call_and_data(&self, settings: &mut Settings) -> Result<()> {
        let given = self.call.is_some() || self.data.is_some() || self.data_file.is_some();
        ensure!(!given || settings.step.is_empty(), "a scenario has its calls and data in its steps");
        if self.call.is_some() {
            settings.call.clone_from(&self.call);
        }
        if let Some(metadata) = &self.metadata {
            settings.metadata = serde_json::from_str(metadata).context("metadata are a JSON object of texts")?;
        }
        if let Some(file) = &self.data_file {
            (settings.data, settings.data_file, settings.data_text) = (None, Some(file.clone()), None);
        }
        if let Some(data) = &self.data {
            let mut text = data.clone();
            if data == "@" {
                text.clear();
                std::io::stdin().read_to_string(&mut text).context("cannot read the request from stdin")?;
            }
            (settings.data, settings.data_file, settings.data_text) = (None, None, Some(text));
        }
        Ok(())
    }
}
