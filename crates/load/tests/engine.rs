//! The loader against a real server: what it promises to count is what happened.

mod echo;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use souk_load::{Code, Load, Reply, Request, Rpc, Schedule, Source, Target, Until, frame};
use tokio::time::timeout;

use echo::{Echo, PATIENCE};

async fn connected(echo: &Echo, connections: usize, method: &str) -> Result<(Target, Arc<Rpc>)> {
    let mut target = Target::default();
    let service = target.connect(&echo.address, connections).await?;
    let rpc = target.rpc(service, &format!("/souk.load.Echo/{method}"))?;
    Ok((target, Arc::new(rpc)))
}

/// The same call again and again; `at` is told the number of each before it is sent.
fn repeat(rpc: Arc<Rpc>, message: &[u8], at: impl Fn(u64) + Send + Sync + 'static) -> impl Source {
    let message = frame(message);
    move |number| {
        at(number);
        rpc.request(message.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_sends_every_call_of_its_schedule() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, rpc) = connected(&echo, 3, "Say").await?;
    let schedule = Schedule::line(100.0, 900.0, 800.0, Duration::from_secs(2));
    let mut told = 0;
    let load = Load::new(&target, repeat(rpc, b"hello", drop)).on_second(|second| told += second.ok);
    let report = timeout(PATIENCE, load.open_loop(schedule, 64)).await??;
    assert_eq!((report.intended, report.answered(), report.failed(), report.unsent), (Some(1400), 1400, 0, 0));
    assert_eq!((report.kinds[0].sent_bytes, report.kinds[0].received_bytes), (14_000, 14_000));
    assert_eq!(report.seconds.iter().map(|second| second.ok).sum::<u64>(), 1400);
    assert!(told <= 1400 && told >= report.seconds[0].ok, "told {told}");
    assert_eq!((report.latency().len(), report.connections_lost), (1400, 0));
    assert!(report.elapsed >= Duration::from_millis(1990), "not before they were due: {:?}", report.elapsed);
    assert!(report.seconds[0].ok < 700, "{:?}", report.seconds);
    assert!(!report.cpu.is_zero());
    Ok(())
}

/// Coordinated omission: a server that stops for a second keeps 16 callers from sending some 480 calls, all of which count their wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_shows_in_the_latency_of_the_calls_it_held_up() -> Result<()> {
    let echo = Arc::new(Echo::start().await?);
    let (target, rpc) = connected(&echo, 2, "Say").await?;
    let stalls = echo.clone();
    let source = repeat(rpc, b"hello", move |number| {
        if number == 500 {
            stalls.gate(false);
            let stalls = stalls.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                stalls.gate(true);
            });
        }
    });
    let schedule = Schedule::constant(500.0, Duration::from_secs(3));
    let report = timeout(PATIENCE, Load::new(&target, source).open_loop(schedule, 16)).await??;
    let latency = report.latency();
    assert_eq!((report.answered(), report.failed(), report.unsent), (1500, 0, 0));
    assert!(latency.max() >= Duration::from_millis(990), "{:?}", latency.max());
    let held = [900, 500, 100].map(|millis| latency.above(Duration::from_millis(millis)));
    assert!(held[0] >= 45 && held[1] >= 240 && held[2] >= 440, "{held:?}");
    assert!(report.lag.above(Duration::from_millis(100)) >= 430, "they were sent late: {}", report.lag.above(Duration::from_millis(100)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_status_wherever_it_stands() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, fail) = connected(&echo, 1, "Fail").await?;
    let (broken, broken_off) = connected(&echo, 1, "BreakOff").await?;
    let (_, unknown) = connected(&echo, 1, "Unknown").await?;
    let codes = [Code::NotFound, Code::Aborted, Code::ResourceExhausted, Code::ResourceExhausted];
    let messages = codes.map(|code| frame(&[code as u8]));
    let source = {
        let fail = fail.clone();
        move |number: u64| fail.request(messages[(number % 4) as usize].clone())
    };
    let report = timeout(PATIENCE, Load::new(&target, source).closed_loop(8, Until::Sent(400))).await??;
    assert_eq!(report.codes().collect::<Vec<_>>(), [(Code::NotFound, 100), (Code::ResourceExhausted, 200), (Code::Aborted, 100)]);
    assert_eq!((report.errors[0].message.as_str(), report.errors[0].count), ("no luck: 50 %", 200));
    assert_eq!((report.kinds[0].ok.len(), report.kinds[0].failed.len()), (0, 400));

    let report = timeout(PATIENCE, Load::new(&broken, repeat(broken_off, b"half", drop)).closed_loop(2, Until::Sent(10))).await??;
    assert_eq!((report.count(Code::Aborted), report.errors[0].message.as_str()), (10, "half way"));
    assert_eq!(report.kinds[0].received_bytes, 90);
    let report = timeout(PATIENCE, Load::new(&target, repeat(unknown, b"", drop)).closed_loop(1, Until::Sent(3))).await??;
    assert_eq!(report.count(Code::Unimplemented), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_nobody_answers_ends_at_its_deadline() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, rpc) = connected(&echo, 1, "Ignore").await?;
    let rpc = Arc::new(Rpc::clone(&rpc).deadline(Duration::from_millis(100)));
    let schedule = Schedule::constant(100.0, Duration::from_secs(1));
    let report = timeout(PATIENCE, Load::new(&target, repeat(rpc, b"?", drop)).open_loop(schedule, 64)).await??;
    assert_eq!((report.answered(), report.unsent), (100, 0));
    assert_eq!(report.count(Code::DeadlineExceeded) + report.count(Code::Cancelled), 100, "{:?}", report.errors);
    assert!(report.kinds[0].failed.min() >= Duration::from_millis(95), "{:?}", report.kinds[0].failed.min());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_cannot_be_sent_in_time_are_counted_as_unsent() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, rpc) = connected(&echo, 1, "Ignore").await?;
    let rpc = Arc::new(Rpc::clone(&rpc).deadline(Duration::from_millis(250)));
    let schedule = Schedule::constant(100.0, Duration::from_secs(1));
    let load = Load::new(&target, repeat(rpc, b"?", drop)).patience(Duration::from_millis(50));
    let report = timeout(PATIENCE, load.open_loop(schedule, 2)).await??;
    assert_eq!(report.answered() + report.unsent, 100);
    assert!((2..=10).contains(&report.answered()), "two callers with four calls each: {}", report.answered());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_tells_what_was() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, rpc) = connected(&echo, 1, "Say").await?;
    let (sent, mut reached) = tokio::sync::watch::channel(0);
    let source = repeat(rpc, b"", move |number| {
        sent.send_replace(number);
    });
    let stop = async move {
        let _ = reached.wait_for(|number| *number >= 100).await;
    };
    let load = Load::new(&target, source).stopped_by(stop);
    let report = timeout(PATIENCE, load.open_loop(Schedule::constant(200.0, Duration::from_secs(600)), 8)).await??;
    assert!((101..1000).contains(&report.answered()), "{}", report.answered());
    assert_eq!(report.failed(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_in_order_costs_no_call() -> Result<()> {
    let echo = Arc::new(Echo::start().await?);
    let (target, rpc) = connected(&echo, 2, "Say").await?;
    let server = echo.clone();
    let source = repeat(rpc, b"hello", move |number| {
        if number == 200 || number == 400 {
            server.replace();
        }
    });
    let report = timeout(PATIENCE, Load::new(&target, source).open_loop(Schedule::constant(300.0, Duration::from_secs(2)), 32)).await??;
    assert_eq!((report.answered(), report.count(Code::Ok)), (600, 600), "{:?}", report.errors);
    assert_eq!(report.connections_lost, 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_opened_anew_and_its_calls_have_failed() -> Result<()> {
    let echo = Arc::new(Echo::start().await?);
    let (target, rpc) = connected(&echo, 2, "Say").await?;
    let server = echo.clone();
    // The gate holds calls up, so that some are under way when the cut comes.
    let source = repeat(rpc, b"hello", move |number| match number {
        190 => server.gate(false),
        200 => {
            server.cut();
            server.gate(true);
        }
        _ => {}
    });
    let report = timeout(PATIENCE, Load::new(&target, source).open_loop(Schedule::constant(300.0, Duration::from_secs(2)), 64)).await??;
    let lost = report.count(Code::Unavailable);
    assert_eq!((report.answered(), report.count(Code::Ok) + lost), (600, 600), "{:?}", report.errors);
    assert!((1..=100).contains(&lost), "{lost} calls were under way: {:?}", report.errors);
    assert_eq!(report.connections_lost, 2);
    Ok(())
}

/// Remembers replies by their tags.
struct Remember {
    rpc: Arc<Rpc>,
    replies: Arc<Mutex<Vec<(u64, Bytes)>>>,
}

impl Source for Remember {
    fn kinds(&self) -> Vec<String> {
        vec!["small".to_owned(), "large".to_owned()]
    }

    fn next(&self, number: u64) -> Request {
        let kind = (number % 2) as usize;
        self.rpc.request(frame(&vec![number as u8; 10 + kind * 200_000])).kind(kind).keep_reply(number)
    }

    fn replied(&self, reply: Reply<'_>) {
        assert_eq!(reply.kind as u64, reply.tag % 2);
        let message = Bytes::copy_from_slice(reply.message().expect("a whole message"));
        self.replies.lock().expect("no panic").push((reply.tag, message));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_sees_the_replies_it_keeps_and_kinds_are_told_apart() -> Result<()> {
    let echo = Echo::start().await?;
    let (target, rpc) = connected(&echo, 2, "Say").await?;
    let replies = Arc::<Mutex<Vec<(u64, Bytes)>>>::default();
    let source = Remember { rpc, replies: replies.clone() };
    let report = timeout(PATIENCE, Load::new(&target, source).closed_loop(5, Until::Sent(100))).await??;
    assert_eq!(report.intended, None);
    let kinds: Vec<_> = report.kinds.iter().map(|kind| (kind.name.as_str(), kind.answered(), kind.count(Code::Ok))).collect();
    assert_eq!(kinds, [("small", 50, 50), ("large", 50, 50)]);
    assert_eq!(report.kinds[1].received_bytes, 50 * 200_015);
    let mut replies = std::mem::take(&mut *replies.lock().expect("no panic"));
    replies.sort();
    assert_eq!(replies.len(), 100);
    for (number, (tag, message)) in (0u64..).zip(replies) {
        assert_eq!((tag, message.len()), (number, 10 + (number % 2) as usize * 200_000));
        assert!(message.iter().all(|byte| *byte == number as u8), "reply {number}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_at_home_is_said_at_once() {
    let mut target = Target::default();
    let refused = target.connect("127.0.0.1:1", 1).await.expect_err("nobody listens there");
    assert!(refused.to_string().contains("cannot connect to 127.0.0.1:1"), "{refused}");
}
