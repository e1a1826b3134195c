use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use souk_load::{Schedule, Until};

use super::keys::KeySettings;

/// A run as a file describes it: a configuration of ghz, or a scenario, which has steps and keys in place of one call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Settings {
    pub name: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub host: Option<String>,
    pub protoset: Option<String>,
    pub call: Option<String>,
    pub data: Option<Value>,
    pub data_file: Option<String>,
    /// Data from the command line: text, where actions may stand anywhere.
    #[serde(skip)]
    pub data_text: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub rps: f64,
    pub load_schedule: Option<String>,
    pub load_start: f64,
    pub load_end: f64,
    pub load_step: f64,
    pub load_step_duration: Time,
    pub load_max_duration: Time,
    #[serde(rename = "async")]
    pub asynchronous: bool,
    pub concurrency: Option<usize>,
    pub connections: Option<usize>,
    pub total: Option<u64>,
    pub duration: Time,
    pub max_duration: Time,
    pub timeout: Option<Time>,
    pub format: Option<String>,
    pub output: Option<String>,
    /// Ours: sets of ids by name.
    pub keys: BTreeMap<String, KeySettings>,
    /// Ours: kinds of calls that are mixed.
    pub step: Vec<StepSettings>,
    /// Ours: what the run has to keep to.
    pub thresholds: Vec<String>,
    /// Other settings of ghz.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// One kind of call in a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StepSettings {
    /// The method, unless given.
    pub name: Option<String>,
    pub call: String,
    /// How often it is chosen, against the others.
    pub weight: f64,
    /// A step whose reply this one needs, by name: each reply is used once, and while there is none, that step is taken in place of this.
    pub after: Option<String>,
    #[serde(default)]
    pub data: Value,
    #[serde(default)]
    pub thresholds: Vec<String>,
}

/// A duration as Go writes it: 1m30s, 1.5h, 250ms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time(pub Duration);

impl std::str::FromStr for Time {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut sum, mut rest) = (0.0, text);
        if text == "0" {
            return Ok(Self::default());
        }
        while !rest.is_empty() {
            let digits = rest.find(|digit: char| !digit.is_ascii_digit() && digit != '.').unwrap_or(rest.len());
            let letters = rest[digits..].find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len() - digits);
            let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
            let seconds = match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => bail!("{text:?} is no time such as 1m30s or 250ms"),
            };
            let number: f64 = number.parse().with_context(|| format!("{text:?} is no time such as 1m30s or 250ms"))?;
            sum += number * seconds;
            rest = &rest[digits + letters..];
        }
        ensure!(!text.is_empty(), "a time is missing");
        Ok(Self(Duration::try_from_secs_f64(sum)?))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Quoted mostly; ghz takes a bare 0, too.
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Settings of ghz that change nothing here: there is no TLS, connections are kept up, and calls under way at the end are waited for.
const IDLE: [&str; 12] = [
    "insecure",
    "skipTLS",
    "connect-timeout",
    "keepalive",
    "cpus",
    "debug",
    "import-paths",
    "reflect-metadata",
    "lb-strategy",
    "max-recv-message-size",
    "max-send-message-size",
    "duration-stop",
];

/// Settings of ghz that would change what is measured, and are not supported.
const UNSUPPORTED: [&str; 23] = [
    "proto",
    "cacert",
    "cert",
    "key",
    "cname",
    "authority",
    "binary-file",
    "metadata-file",
    "concurrency-schedule",
    "concurrency-start",
    "concurrency-end",
    "concurrency-step",
    "concurrency-step-duration",
    "concurrency-max-duration",
    "disable-template-functions",
    "disable-template-data",
    "enable-compression",
    "stream-interval",
    "stream-call-duration",
    "stream-call-count",
    "stream-dynamic-messages",
    "skipFirst",
    "count-errors",
];

impl Settings {
    /// Reads a file as ghz does, by the ending of its name.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let settings = match file.extension().and_then(|ending| ending.to_str()) {
            Some("json") => serde_json::from_str(&text).map_err(anyhow::Error::from),
            Some("toml") => toml::from_str(&text).map_err(anyhow::Error::from),
            _ => bail!("{}: a configuration ends with .json or .toml", file.display()),
        };
        let settings: Self = settings.with_context(|| format!("{} is no configuration of ghz, nor a scenario", file.display()))?;
        settings.check().with_context(|| file.display().to_string())?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        for (name, value) in &self.rest {
            let unset = matches!(value, Value::Null | Value::Bool(false))
                || value.as_f64() == Some(0.0)
                || value.as_str().is_some_and(|text| ["", "0", "0s", "const"].contains(&text));
            match name.as_str() {
                name if IDLE.contains(&name) => {}
                name if UNSUPPORTED.contains(&name) => ensure!(unset, "souk load does not support {name:?}"),
                name => bail!("there is no setting called {name:?}"),
            }
        }
        let one = self.call.is_some() || self.data.is_some() || self.data_file.is_some();
        ensure!(!one || self.step.is_empty(), "a scenario with steps has no call or data of its own");
        Ok(())
    }

    /// How much is sent when.
    ///
    /// # Errors
    /// When the settings contradict each other.
    pub fn pace(&self) -> Result<Pace> {
        const TOTAL: u64 = 200;
        const ENDLESS: Duration = Duration::from_secs(86_400);
        let limit = if self.duration.0.is_zero() { Some(self.total.unwrap_or(TOTAL)) } else { None };
        let lasts = [self.duration.0, self.max_duration.0].into_iter().find(|time| !time.is_zero());
        let schedule = match self.load_schedule.as_deref().unwrap_or("const") {
            "const" if self.rps == 0.0 => {
                return Ok(Pace::Closed(match (lasts, limit) {
                    (Some(time), Some(calls)) => Until::Either(time, calls),
                    (Some(time), None) => Until::Elapsed(time),
                    (None, calls) => Until::Sent(calls.unwrap_or(TOTAL)),
                }));
            }
            "const" => Schedule::constant(self.rps, lasts.unwrap_or(ENDLESS)),
            "step" => self.steps(self.load_step_duration.0, lasts.unwrap_or(ENDLESS))?,
            // A line of ghz is a stair with a step each second.
            "line" => self.steps(Duration::from_secs(1), lasts.unwrap_or(ENDLESS))?,
            other => bail!("load-schedule is const, step or line, not {other:?}"),
        };
        Ok(Pace::Open(limit.map_or(schedule.clone(), |calls| schedule.limit(calls))))
    }

    fn steps(&self, each: Duration, lasts: Duration) -> Result<Schedule> {
        let Self { load_start: start, load_end: end, load_step: step, .. } = *self;
        ensure!(start > 0.0 && step != 0.0, "a load schedule needs load-start and load-step");
        ensure!(!each.is_zero(), "load-schedule step needs load-step-duration");
        let climb = if self.load_max_duration.0.is_zero() { lasts } else { self.load_max_duration.0.min(lasts) };
        let stairs = (climb.as_nanos() / each.as_nanos()) as f64;
        let end = if end > 0.0 { end } else { (start + step * stairs).max(0.0) };
        ensure!((end - start) * step >= 0.0, "load-step leads away from load-end");
        let rise = Schedule::steps(start, end, step, each, climb);
        Ok(if climb < lasts { rise.then(end, end, lasts - climb) } else { rise })
    }

    /// Calls that may be under way at a time.
    pub fn outstanding(&self) -> usize {
        // With async, ghz has no limit; memory has.
        const ASYNC: usize = 2000;
        let concurrency = self.concurrency.unwrap_or(50);
        if self.asynchronous { ASYNC.max(concurrency) } else { concurrency }
    }
}

/// How calls follow each other.
#[derive(Clone, Debug)]
pub enum Pace {
    Open(Schedule),
    Closed(Until),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> f64 {
        text.parse::<Time>().map(|time| time.0.as_secs_f64()).unwrap_or(-1.0)
    }

    fn settings(toml: &str) -> Settings {
        toml::from_str(toml).expect("settings")
    }

    fn calls(toml: &str) -> (u64, f64) {
        match settings(toml).pace().expect("a pace") {
            Pace::Open(schedule) => (schedule.calls(), schedule.duration().as_secs_f64()),
            Pace::Closed(until) => panic!("{until:?}"),
        }
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        assert_eq!(["1m30s", "250ms", "1.5h", "0", "90s", "1h0m1s"].map(seconds), [90.0, 0.25, 5400.0, 0.0, 90.0, 3601.0]);
        assert_eq!(["", "10", "s", "1 s", "1d", "-1s"].map(seconds), [-1.0; 6]);
    }

    #[test]
    fn schedules_are_those_of_ghz() {
        assert_eq!(calls("rps = 100\nduration = '5s'"), (500, 5.0));
        assert_eq!(calls("rps = 100\ntotal = 50"), (50, 0.5));
        assert_eq!(calls("rps = 100"), (200, 2.0));
        let step = "load-schedule = 'step'\nload-start = 10\nload-step = 10\nload-end = 30\nload-step-duration = '2s'\n";
        assert_eq!(calls(&format!("{step}duration = '8s'")), (20 + 40 + 60 + 60, 8.0));
        assert_eq!(calls(&format!("{step}duration = '8s'\nload-max-duration = '2s'")), (20 + 180, 8.0));
        let line = "load-schedule = 'line'\nload-start = 10\nload-step = 10\n";
        assert_eq!(calls(&format!("{line}duration = '4s'")), (10 + 20 + 30 + 40, 4.0));
        assert_eq!(calls(&format!("{line}load-end = 20\nduration = '4s'")), (10 + 20 + 20 + 20, 4.0));
        assert!(matches!(settings("duration = '5s'").pace(), Ok(Pace::Closed(Until::Elapsed(_)))));
        assert!(matches!(settings("total = 7").pace(), Ok(Pace::Closed(Until::Sent(7)))));
        assert!(settings("load-schedule = 'step'\nload-start = 10\nload-step = 1").pace().is_err());
        assert!(settings("load-schedule = 'wave'").pace().is_err());
    }

    #[test]
    fn settings_that_would_be_ignored_are_refused() {
        let checked = |toml: &str| settings(toml).check().map_err(|error| error.to_string());
        assert_eq!(checked("insecure = true\ncpus = 1\nskipFirst = 0\ncacert = ''"), Ok(()));
        assert_eq!(checked("cacert = 'ca.pem'"), Err("souk load does not support \"cacert\"".into()));
        assert_eq!(checked("rpm = 3"), Err("there is no setting called \"rpm\"".into()));
        assert!(checked("call = 'a/B'\n[[step]]\ncall = 'a/C'\nweight = 1").is_err());
    }
}
