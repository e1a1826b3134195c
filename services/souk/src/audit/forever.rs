use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use metrics::{counter, gauge};
use souk_event_sourcing::UnixMillis;
use souk_runtime::{Health, Settings, bind, metrics as recorder, ops, termination};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Args, audit, tell};

/// After an audit that failed, as before the databases have their tables, or that found something, which may pass: during a rollout streams are
/// set up as the release before wants them.
const RETRY: Duration = Duration::from_secs(60);

/// Audits every so often until it is told to end, and shows at `/metrics` what came of it: a proof that is made only when
/// somebody asks for it is made too late.
///
/// # Errors
/// When its port is taken. What cannot be looked at is counted; it and what differs are looked at again soon.
pub async fn run(settings: &Settings, args: &Args, every: Duration) -> Result<()> {
    recorder::install();
    let listener = bind("--ops", args.ops).await?;
    let (health, shutdown) = (Health::new(), CancellationToken::new());
    // A difference is no reason to take the auditor off: readiness is about itself.
    health.component("auditor").ready();
    recorder::start_at_zero(&["souk_audit_failures_total"]);
    let serving = tokio::spawn(ops::serve(listener, health, shutdown.clone()));
    let auditing = async {
        let mut shown = BTreeSet::new();
        loop {
            let started = Instant::now();
            let pause = if round(settings, args, &mut shown).await { every } else { every.min(RETRY) };
            sleep_until(started + pause).await;
        }
    };
    tokio::select! {
        () = auditing => {}
        _ = termination() => {}
    }
    shutdown.cancel();
    serving.await??;
    Ok(())
}

/// One audit; whether all agrees. What earlier ones have `shown` is shown on, as nothing if nothing of it was looked at.
async fn round(settings: &Settings, args: &Args, shown: &mut BTreeSet<&'static str>) -> bool {
    let started = Instant::now();
    match audit(settings, args).await {
        Ok(findings) => {
            gauge!("souk_audit_differences").set(findings.wrong.values().sum::<u64>() as f64);
            shown.extend(findings.checked.keys());
            for what in shown.iter() {
                let number = findings.checked.get(what).copied().unwrap_or_default();
                gauge!("souk_audit_checked", "what" => *what).set(number as f64);
            }
            gauge!("souk_audit_finished_time_seconds").set(UnixMillis::now().0 as f64 / 1000.0);
            gauge!("souk_audit_seconds").set(started.elapsed().as_secs_f64());
            tell(&findings, started.elapsed(), args, &[]);
            findings.is_clean()
        }
        Err(error) => {
            counter!("souk_audit_failures_total").increment(1);
            eprintln!("souk: audit: {error:#}");
            false
        }
    }
}
