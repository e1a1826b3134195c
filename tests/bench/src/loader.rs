use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use souk_load::{Load, Reply, Report, Request, Rpc, Schedule, Source, Target, Until};
use tonic::Code;

use crate::{machine, pairs::Side, record::progress};

/// How often calls of a filling are sent again, and how long after they were refused.
const FILL_AGAIN: usize = 10;
const FILL_PAUSE: Duration = Duration::from_secs(1);

/// How hard to press.
#[derive(Debug, Clone)]
pub enum Press {
    /// So many callers, each with one call at a time.
    Callers(usize, Duration),
    /// Calls per second, whatever becomes of them, with so many under way at most.
    Rate(f64, Duration, usize),
    /// So many calls by so many callers.
    Calls(usize, u64),
}

/// Where load goes and from where.
#[derive(Debug, Clone)]
pub struct Loader {
    /// `http://host:port` of each service, with the number of connections.
    pub services: Vec<(String, usize)>,
    /// The cores it may use; all if empty.
    pub cores: Vec<usize>,
}

impl Loader {
    pub fn new(url: impl Into<String>, connections: usize) -> Self {
        Self { services: vec![(url.into(), connections)], cores: Vec::new() }
    }

    #[must_use]
    pub fn and(mut self, url: impl Into<String>, connections: usize) -> Self {
        self.services.push((url.into(), connections));
        self
    }

    #[must_use]
    pub fn on(self, cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), ..self }
    }

    /// Sends what `source` makes of the methods at `paths`, each with the index of its service.
    ///
    /// # Errors
    /// When a service cannot be reached.
    pub async fn run<S: Source>(
        &self,
        paths: &[(usize, &str)],
        source: impl FnOnce(Vec<Arc<Rpc>>) -> S + Send + 'static,
        press: Press,
    ) -> Result<Report> {
        let Self { services, cores } = self.clone();
        let paths: Vec<(usize, String)> = paths.iter().map(|(service, path)| (*service, (*path).to_owned())).collect();
        on_own_thread(move || async move {
            if !cores.is_empty() {
                machine::pin_thread(&cores)?;
            }
            let mut target = Target::default();
            let mut connected = Vec::new();
            for (url, connections) in &services {
                connected.push(target.connect(url, *connections).await?);
            }
            let rpcs = paths.iter().map(|(service, path)| Ok(Arc::new(target.rpc(connected[*service], path)?)));
            let load = Load::new(&target, source(rpcs.collect::<Result<Vec<_>>>()?));
            Ok(match press {
                Press::Callers(callers, time) => load.closed_loop(callers, Until::Elapsed(time)).await?,
                Press::Calls(callers, calls) => load.closed_loop(callers, Until::Sent(calls)).await?,
                Press::Rate(rate, time, outstanding) => load.open_loop(Schedule::constant(rate, time), outstanding).await?,
            })
        })
        .await
    }

    /// Sends the first `count` calls of a source, one at a time from each of so many callers. What is refused because too many wait is
    /// sent again a moment later: a disk that stands still for half a second spoils what is measured, not what is prepared for it.
    ///
    /// # Errors
    /// When a call fails for another reason, or goes on being refused.
    pub async fn fill<S: Source>(
        &self,
        path: &str,
        source: impl Fn(&Arc<Rpc>) -> S + Clone + Send + 'static,
        callers: usize,
        count: u64,
    ) -> Result<()> {
        let mut left: Vec<u64> = (0..count).collect();
        for _ in 0..=FILL_AGAIN {
            let refused = Arc::new(Mutex::new(Vec::new()));
            let (source, numbers, again) = (source.clone(), mem::take(&mut left), refused.clone());
            let calls = Press::Calls(callers, numbers.len() as u64);
            let filling = move |rpcs: Vec<Arc<Rpc>>| Filling { source: source(&rpcs[0]), numbers, refused: again };
            let report = self.run(&[(0, path)], filling, calls).await?;
            left = mem::take(&mut *refused.lock().unwrap_or_else(PoisonError::into_inner));
            ensure!(report.failed() + report.unsent == left.len() as u64, "calls failed: {:?}", report.errors);
            if left.is_empty() {
                return Ok(());
            }
            progress(&format!("{} calls were refused, and are sent again", left.len()));
            tokio::time::sleep(FILL_PAUSE).await;
        }
        bail!("{} calls are refused again and again", left.len())
    }
}

/// Some calls of a source, and those of them that were refused for the moment.
struct Filling<S> {
    source: S,
    numbers: Vec<u64>,
    refused: Arc<Mutex<Vec<u64>>>,
}

impl<S: Source> Source for Filling<S> {
    fn kinds(&self) -> Vec<String> {
        self.source.kinds()
    }

    fn next(&self, number: u64) -> Request {
        let number = self.numbers[number as usize];
        self.source.next(number).keep_reply(number)
    }

    fn replied(&self, reply: Reply<'_>) {
        if reply.code == Code::ResourceExhausted {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(reply.tag);
        }
    }
}

/// Runs something on a thread that has nothing else to do: no wake-up goes from one thread to another.
///
/// # Errors
/// Those of `work`, or its panic.
pub async fn on_own_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (send, receive) = tokio::sync::oneshot::channel();
    let alone = move || -> Result<T> { tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()) };
    thread::Builder::new().name("loader".to_owned()).spawn(move || drop(send.send(alone())))?;
    receive.await.map_err(|_| anyhow!("a loader ended by a panic"))?
}

/// Calls answered with OK, and the CPU time that was used for all of the load.
pub fn side_of(report: &Report, cpu: Duration) -> Side {
    Side::new(report.goodput(), report.count(Code::Ok), cpu)
}

/// Fails unless every call was answered with OK.
///
/// # Errors
/// With the first error seen.
pub fn all_ok(report: Report) -> Result<Report> {
    let failed = report.failed() + report.unsent;
    (failed == 0).then_some(()).with_context(|| format!("{failed} calls failed: {:?}", report.errors.first()))?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use prost::Message;
    use souk_load::frame;
    use souk_proto::catalog::v1::GetProductRequest;
    use tonic::{Response, Status, server::UnaryService, transport::Server};

    use super::*;
    use crate::{echo::EchoServer, sources::GET_PRODUCT};

    /// Refuses every third product the first time it is asked for, and always the one called "never". Counts what it was asked for.
    #[derive(Clone, Default)]
    struct Fussy(Arc<Mutex<BTreeMap<String, u32>>>);

    impl UnaryService<GetProductRequest> for Fussy {
        type Response = Bytes;
        type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

        fn call(&mut self, request: tonic::Request<GetProductRequest>) -> Self::Future {
            let product = request.into_inner().product_id;
            let mut asked = self.0.lock().unwrap();
            let times = asked.entry(product.clone()).or_default();
            *times += 1;
            std::future::ready(match product.parse::<u32>() {
                Ok(number) if number.is_multiple_of(3) && *times == 1 => Err(Status::resource_exhausted("too many")),
                Ok(_) => Ok(Response::new(Bytes::new())),
                Err(_) => Err(Status::not_found("never")),
            })
        }
    }

    async fn start(fussy: Fussy) -> Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        #[expect(clippy::disallowed_methods, reason = "no service of Souk's, and no limits to it")]
        let server = Server::builder().add_service(EchoServer { echo: fussy, limit: 1 << 20 });
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        Ok(url)
    }

    fn ask(
        product: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
    ) -> impl Fn(&Arc<Rpc>) -> Box<dyn Fn(u64) -> Request + Send + Sync> + Clone {
        move |rpc| {
            let (rpc, product) = (rpc.clone(), product.clone());
            Box::new(move |number| {
                let request = GetProductRequest { product_id: product(number), ..Default::default() };
                Request::new(&rpc, frame(&request.encode_to_vec()))
            })
        }
    }

    #[tokio::test]
    async fn what_is_refused_for_the_moment_is_sent_again_and_nothing_else() -> Result<()> {
        let fussy = Fussy::default();
        let loader = Loader::new(start(fussy.clone()).await?, 2);
        loader.fill(GET_PRODUCT, ask(|number| number.to_string()), 8, 100).await?;
        let asked = fussy.0.lock().unwrap().clone();
        let wanted = (0..100_u32).map(|number| (number.to_string(), if number.is_multiple_of(3) { 2 } else { 1 })).collect();
        assert_eq!(asked, wanted);

        let error = loader.fill(GET_PRODUCT, ask(|_| "never".to_owned()), 1, 2).await.expect_err("no product is called that");
        assert!(error.to_string().contains("NotFound"), "{error}");
        assert_eq!(fussy.0.lock().unwrap()["never"], 2);
        Ok(())
    }
}
