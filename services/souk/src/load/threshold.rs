use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use souk_load::{Code, Histogram, Kind, Report};

/// What a run has to keep to, such as `p99 < 50ms`, `errors < 0.1 %` or `rate > 950/s`.
#[derive(Clone, Debug)]
pub struct Threshold {
    text: String,
    /// The step it is about; all of them if none.
    step: Option<usize>,
    metric: Metric,
    comparison: fn(&f64, &f64) -> bool,
    bound: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    /// Seconds that so many percent of the calls took at most.
    Quantile(f64),
    Max,
    Mean,
    /// The share of calls that did not end with OK, unsent ones included.
    Errors,
    /// OK answers per second.
    Rate,
}

/// How a threshold was kept.
pub struct Verdict {
    pub text: String,
    pub seen: String,
    pub kept: bool,
}

impl Threshold {
    pub fn parse(text: &str, step: Option<usize>) -> Result<Self> {
        let place = text.find(['<', '>']).with_context(|| format!("{text:?} compares nothing: p99 < 50ms would be a threshold"))?;
        let (metric, rest) = (text[..place].trim(), &text[place..]);
        let (comparison, bound): (fn(&f64, &f64) -> bool, _) = match rest.as_bytes() {
            [b'<', b'=', ..] => (f64::le, &rest[2..]),
            [b'>', b'=', ..] => (f64::ge, &rest[2..]),
            [b'<', ..] => (f64::lt, &rest[1..]),
            _ => (f64::gt, &rest[1..]),
        };
        let metric = Metric::named(metric).with_context(|| format!("in the threshold {text:?}"))?;
        let bound = metric.bound(bound.trim()).with_context(|| format!("in the threshold {text:?}"))?;
        Ok(Self { text: text.to_owned(), step, metric, comparison, bound })
    }

    pub fn judge(&self, report: &Report) -> Verdict {
        let seen = match self.step {
            Some(step) => {
                let kind = &report.kinds[step];
                self.metric.of(&kind.ok, failed(kind), kind.answered(), kind.count(Code::Ok) as f64 / report.elapsed.as_secs_f64())
            }
            None => self.metric.of(&report.latency(), report.failed() + report.unsent, report.answered() + report.unsent, report.goodput()),
        };
        let name = self.step.map(|step| format!("{}: ", report.kinds[step].name)).unwrap_or_default();
        // A run without a single answer keeps to nothing.
        let kept = report.answered() > 0 && (self.comparison)(&seen, &self.bound);
        Verdict { text: format!("{name}{}", self.text), seen: self.metric.show(seen), kept }
    }
}

fn failed(kind: &Kind) -> u64 {
    kind.answered() - kind.count(Code::Ok)
}

impl Metric {
    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "max" => Self::Max,
            "mean" | "average" => Self::Mean,
            "errors" => Self::Errors,
            "rate" => Self::Rate,
            _ => {
                let percent = name.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok());
                let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
                Self::Quantile(percent.with_context(|| format!("{name:?} is none of p50, p99.9, max, mean, errors, rate"))?)
            }
        })
    }

    fn bound(self, text: &str) -> Result<f64> {
        let number = |text: &str| text.trim().parse::<f64>().with_context(|| format!("{text:?} is no number"));
        let bound = match self {
            Self::Errors => number(text.strip_suffix('%').context("a share of errors is in %")?)? / 100.0,
            Self::Rate => number(text.strip_suffix("/s").unwrap_or(text))?,
            Self::Quantile(_) | Self::Max | Self::Mean => {
                text.replace(' ', "").parse::<super::settings::Time>().map(|time| time.0.as_secs_f64())?
            }
        };
        ensure!(bound.is_finite() && bound >= 0.0, "{text:?} is less than nothing");
        Ok(bound)
    }

    fn of(self, ok: &Histogram, failed: u64, answered: u64, rate: f64) -> f64 {
        match self {
            // Nothing answered took forever.
            Self::Quantile(_) | Self::Max | Self::Mean if ok.is_empty() => f64::INFINITY,
            Self::Quantile(percent) => ok.quantile(percent / 100.0).as_secs_f64(),
            Self::Max => ok.max().as_secs_f64(),
            Self::Mean => ok.mean().as_secs_f64(),
            Self::Errors => failed as f64 / answered.max(1) as f64,
            Self::Rate => rate,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Errors => format!("{:.3} %", value * 100.0),
            Self::Rate => format!("{value:.1}/s"),
            _ if value.is_finite() => format!("{:.2?}", Duration::from_secs_f64(value)),
            _ => "no answer".to_owned(),
        }
    }
}

/// # Errors
/// When one was not kept; the line tells how many.
pub fn all_kept(verdicts: &[Verdict]) -> Result<()> {
    let missed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.kept).collect();
    match missed.as_slice() {
        [] => Ok(()),
        [first, ..] => bail!("{} of {} thresholds missed, such as {} (was {})", missed.len(), verdicts.len(), first.text, first.seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read() {
        let read = |text| Threshold::parse(text, None).map(|threshold| (threshold.metric, threshold.bound)).ok();
        assert_eq!(read("p99 < 50ms"), Some((Metric::Quantile(99.0), 0.05)));
        assert_eq!(read("p99.9<=1.5 s"), Some((Metric::Quantile(99.9), 1.5)));
        assert_eq!(read("errors < 0.1 %"), Some((Metric::Errors, 0.001)));
        assert_eq!(read("rate >= 950/s"), Some((Metric::Rate, 950.0)));
        for bad in ["", "p99", "p99 = 3ms", "p101 < 1s", "speed > 3", "errors < 3", "p50 < 5", "max < -1s"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let compare = |text| Threshold::parse(text, None).expect("a threshold").comparison;
        assert!(compare("rate > 1")(&2.0, &1.0) && !compare("rate > 1")(&1.0, &1.0));
        assert!(compare("rate >= 1")(&1.0, &1.0) && !compare("max < 1s")(&1.0, &1.0) && compare("max <= 1s")(&1.0, &1.0));
    }
}
