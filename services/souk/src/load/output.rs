//! What came of a run, as ghz tells it.

use std::{fmt::Write, time::Duration};

use serde_json::{Map, Value, json};
use souk_load::{Code, ErrorCount, Histogram, Report};

use super::{settings::Settings, threshold::Verdict};
use crate::paint;

pub struct Output<'a> {
    pub settings: &'a Settings,
    /// Where the calls went.
    pub hosts: &'a str,
    /// How the run ended: normal, or cancel.
    pub end: &'static str,
    pub report: &'a Report,
    pub verdicts: &'a [Verdict],
}

impl Output<'_> {
    /// The JSON of ghz, and under `souk` what ghz does not know. There are no details of single calls: they are not kept.
    pub fn json(&self) -> Value {
        let (settings, report, latency) = (self.settings, self.report, self.report.latency());
        let codes = report.codes().map(|(code, count)| (name(code).to_owned(), json!(count))).collect::<Map<_, _>>();
        let errors = report.errors.iter().map(|error| (message(error), json!(error.count))).collect::<Map<_, _>>();
        let percentages = [10, 25, 50, 75, 90, 95, 99];
        let distribution = percentages
            .map(|percentage| json!({ "percentage": percentage, "latency": nanos(latency.quantile(f64::from(percentage) / 100.0)) }));
        json!({
            "name": settings.name,
            "endReason": self.end,
            "date": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "options": self.options(),
            "count": report.answered(),
            "total": nanos(report.elapsed),
            "average": nanos(latency.mean()),
            "fastest": nanos(latency.min()),
            "slowest": nanos(latency.max()),
            "rps": report.answered() as f64 / report.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            "errorDistribution": errors,
            "statusCodeDistribution": codes,
            "latencyDistribution": distribution,
            "histogram": buckets(&latency).iter().map(Bucket::json).collect::<Vec<_>>(),
            "details": [],
            "tags": settings.tags,
            "souk": self.beyond(&latency),
        })
    }

    fn options(&self) -> Value {
        let settings = self.settings;
        json!({
            "call": settings.call,
            "host": self.hosts,
            "protoset": settings.protoset,
            "insecure": true,
            "rps": settings.rps,
            "load-schedule": settings.load_schedule.as_deref().unwrap_or("const"),
            "load-start": settings.load_start,
            "load-end": settings.load_end,
            "load-step": settings.load_step,
            "load-step-duration": nanos(settings.load_step_duration.0),
            "load-max-duration": nanos(settings.load_max_duration.0),
            "concurrency": settings.outstanding(),
            "async": settings.asynchronous,
            "total": settings.total,
            "connections": settings.connections.unwrap_or(1),
            "duration": nanos(settings.duration.0),
            "data": settings.data,
            "metadata": settings.metadata,
            "name": settings.name,
        })
    }

    fn beyond(&self, latency: &Histogram) -> Value {
        let report = self.report;
        let steps = report.kinds.iter().map(|kind| {
            json!({
                "name": kind.name,
                "count": kind.answered(),
                "ok": kind.count(Code::Ok),
                "latency": quantiles(&kind.ok),
                "sentBytes": kind.sent_bytes,
                "receivedBytes": kind.received_bytes,
            })
        });
        let seconds = report.seconds.iter().map(|second| {
            json!({
                "at": second.at.as_secs_f64(),
                "ok": second.ok,
                "failed": second.failed,
                "p50": nanos(second.p50),
                "p99": nanos(second.p99),
                "max": nanos(second.max),
            })
        });
        let verdicts = self.verdicts.iter().map(|verdict| json!({ "threshold": verdict.text, "seen": verdict.seen, "kept": verdict.kept }));
        json!({
            "latency": quantiles(latency),
            "intended": report.intended,
            "intendedRate": report.intended_rate(),
            "achievedRate": report.rate(),
            "goodput": report.goodput(),
            "unsent": report.unsent,
            "lag": quantiles(&report.lag),
            "connectionsLost": report.connections_lost,
            "resent": report.resent,
            "cpuSeconds": report.cpu.as_secs_f64(),
            "steps": steps.collect::<Vec<_>>(),
            "seconds": seconds.collect::<Vec<_>>(),
            "thresholds": verdicts.collect::<Vec<_>>(),
        })
    }

    /// The summary of ghz, and after it what ghz does not know.
    pub fn summary(&self) -> Result<String, std::fmt::Error> {
        let (report, latency) = (self.report, self.report.latency());
        let mut text = String::from("\nSummary:\n");
        if let Some(name) = &self.settings.name {
            writeln!(text, "  Name:\t\t{name}")?;
        }
        writeln!(text, "  Count:\t{}", report.answered())?;
        for (title, time) in
            [("Total", report.elapsed), ("Slowest", latency.max()), ("Fastest", latency.min()), ("Average", latency.mean())]
        {
            writeln!(text, "  {title}:\t{}", short(time))?;
        }
        writeln!(text, "  Requests/sec:\t{:.2}", report.rate())?;
        if let Some(intended) = report.intended_rate() {
            writeln!(
                text,
                "  Intended/sec:\t{intended:.2}, {} calls unsent, sent late by {} (p99)",
                report.unsent,
                short(report.lag.quantile(0.99))
            )?;
        }
        writeln!(text, "\nResponse time histogram:")?;
        let buckets = buckets(&latency);
        let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
        for bucket in &buckets {
            let bar = "∎".repeat((bucket.count * 40 / most) as usize);
            writeln!(text, "  {:<9} [{}]\t|{bar}", format!("{:.3}", bucket.mark.as_secs_f64() * 1e3), bucket.count)?;
        }
        writeln!(text, "\nLatency distribution, from when calls were due:")?;
        for percentage in [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9] {
            writeln!(text, "  {percentage} % in {}", short(latency.quantile(percentage / 100.0)))?;
        }
        if report.kinds.len() > 1 {
            self.steps(&mut text)?;
        }
        writeln!(text, "\nStatus code distribution:")?;
        for (code, count) in report.codes() {
            writeln!(text, "  [{}]   {count} responses", name(code))?;
        }
        if !report.errors.is_empty() {
            writeln!(text, "\nError distribution:")?;
            for error in &report.errors {
                writeln!(text, "  [{}]   {}", error.count, message(error))?;
            }
        }
        if report.connections_lost > 0 {
            writeln!(text, "\n{} connections were lost; {} calls were sent again unseen", report.connections_lost, report.resent)?;
        }
        if !self.verdicts.is_empty() {
            writeln!(text, "\nThresholds:")?;
        }
        for verdict in self.verdicts {
            let mark = if verdict.kept { paint::green("kept") } else { paint::red("missed") };
            writeln!(text, "  {mark}  {} (was {})", verdict.text, verdict.seen)?;
        }
        Ok(text)
    }

    fn steps(&self, text: &mut String) -> std::fmt::Result {
        let width = self.report.kinds.iter().map(|kind| kind.name.len()).max().unwrap_or(0);
        writeln!(text, "\nSteps:")?;
        for kind in &self.report.kinds {
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| short(kind.ok.quantile(share)));
            let failed = kind.answered() - kind.count(Code::Ok);
            writeln!(
                text,
                "  {:<width$}  {:>9} calls, {failed} failed, p50 {p50}, p99 {p99}, p99.9 {p999}, max {}",
                kind.name,
                kind.answered(),
                short(kind.ok.max())
            )?;
        }
        Ok(())
    }
}

/// As ghz rounds them.
fn short(time: Duration) -> String {
    match time.as_secs_f64() * 1e3 {
        millis if millis < 0.01 => format!("{} ns", time.as_nanos()),
        millis if millis < 1000.0 => format!("{millis:.2} ms"),
        millis => format!("{:.2} s", millis / 1e3),
    }
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

fn quantiles(latency: &Histogram) -> Value {
    let quantile = |share| nanos(latency.quantile(share));
    json!({
        "p50": quantile(0.5),
        "p90": quantile(0.9),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "max": nanos(latency.max()),
        "mean": nanos(latency.mean()),
    })
}

/// As grpc-go, and so ghz, writes a failure.
fn message(error: &ErrorCount) -> String {
    format!("rpc error: code = {} desc = {}", name(error.code), error.message)
}

/// As grpc-go writes a code.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

struct Bucket {
    mark: Duration,
    count: u64,
    share: f64,
}

impl Bucket {
    fn json(&self) -> Value {
        json!({ "mark": self.mark.as_secs_f64(), "count": self.count, "frequency": self.share })
    }
}

/// Eleven marks at equal distances, from the fastest to the slowest, and how many calls took up to each.
fn buckets(latency: &Histogram) -> Vec<Bucket> {
    if latency.is_empty() {
        return Vec::new();
    }
    let (fastest, slowest) = (latency.min(), latency.max());
    let width = (slowest - fastest) / 10;
    let mut buckets: Vec<_> = (0..=10).map(|index| Bucket { mark: fastest + width * index, count: 0, share: 0.0 }).collect();
    for (value, count) in latency.values() {
        let index = buckets.iter().position(|bucket| value <= bucket.mark).unwrap_or(10);
        buckets[index].count += count;
    }
    buckets.iter_mut().for_each(|bucket| bucket.share = bucket.count as f64 / latency.len() as f64);
    buckets
}
