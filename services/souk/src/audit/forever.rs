use std::time::{Duration, Instant};

use anyhow::Result;
use metrics::{counter, gauge};
use souk_event_sourcing::UnixMillis;
use souk_runtime::{Health, Settings, bind, metrics as recorder, ops, termination};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Args, audit, tell};

/// Audits every so often until it is told to end, and shows at `/metrics` what came of it: a proof that is made only when
/// somebody asks for it is made too late.
///
/// # Errors
/// When its port is taken. What cannot be looked at is counted and tried again.
pub async fn run(settings: &Settings, args: &Args, every: Duration) -> Result<()> {
    recorder::install();
    let listener = bind("--ops", args.ops).await?;
    let (health, shutdown) = (Health::new(), CancellationToken::new());
    // A difference is no reason to take the auditor off: readiness is about itself.
    health.component("auditor").ready();
    recorder::start_at_zero(&["souk_audit_failures_total"]);
    let serving = tokio::spawn(ops::serve(listener, health, shutdown.clone()));
    let auditing = async {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            round(settings, args).await;
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

async fn round(settings: &Settings, args: &Args) {
    let started = Instant::now();
    match audit(settings, args).await {
        Ok(findings) => {
            gauge!("souk_audit_differences").set(findings.wrong.values().sum::<u64>() as f64);
            for (what, number) in &findings.checked {
                gauge!("souk_audit_checked", "what" => *what).set(*number as f64);
            }
            gauge!("souk_audit_finished_time_seconds").set(UnixMillis::now().0 as f64 / 1000.0);
            gauge!("souk_audit_seconds").set(started.elapsed().as_secs_f64());
            tell(&findings, started.elapsed(), args);
        }
        Err(error) => {
            counter!("souk_audit_failures_total").increment(1);
            eprintln!("souk: audit: {error:#}");
        }
    }
}
