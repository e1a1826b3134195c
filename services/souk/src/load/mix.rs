use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use prost_reflect::{DynamicMessage, MessageDescriptor};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_load::{Code, Reply, Request, Rpc, Source, frame};
use tokio::sync::Notify;

use super::{
    keys::Keys,
    messages::{Messages, scope},
};

/// Replies a step keeps for those after it; of more, the oldest are forgotten.
const KEPT: usize = 10_000;

/// Kinds of calls, mixed by weight.
pub struct Mix {
    steps: Vec<Step>,
    /// The share of draws up to each step, in all.
    shares: Vec<f64>,
    keys: Arc<Keys>,
    seed: u64,
    broken: Arc<Broken>,
}

pub struct Step {
    name: String,
    weight: f64,
    rpc: Arc<Rpc>,
    messages: Messages,
    /// The step whose reply this one needs.
    after: Option<usize>,
    /// Replies for the steps after this one, if there are any.
    kept: Option<Mutex<VecDeque<DynamicMessage>>>,
}

/// The first request that could not be made; there is no sense in going on after it.
#[derive(Default)]
pub struct Broken {
    reason: OnceLock<String>,
    told: Notify,
}

impl Broken {
    pub async fn told(&self) {
        self.told.notified().await;
    }

    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

impl Step {
    pub fn new(name: String, weight: f64, rpc: Rpc, messages: Messages, after: Option<usize>) -> Self {
        Self { name, weight, rpc: Arc::new(rpc), messages, after, kept: None }
    }

    fn take(&self) -> Option<DynamicMessage> {
        self.kept.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn keep(&self, reply: DynamicMessage) {
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(reply);
        }
    }

    fn reply(&self) -> MessageDescriptor {
        self.messages.method().output()
    }
}

impl Mix {
    pub fn new(mut steps: Vec<Step>, keys: Arc<Keys>, seed: u64) -> Self {
        let before: Vec<_> = steps.iter().filter_map(|step| step.after).collect();
        before.into_iter().for_each(|step| steps[step].kept = Some(Mutex::default()));
        let all: f64 = steps.iter().map(|step| step.weight).sum();
        let mut sum = 0.0;
        let shares = steps.iter().map(|step| {
            sum += step.weight / all;
            sum
        });
        Self { shares: shares.collect(), steps, keys, seed, broken: Arc::default() }
    }

    pub fn broken(&self) -> Arc<Broken> {
        self.broken.clone()
    }

    /// A step by weight, or the first one before it that needs no reply that is not there yet.
    fn choose(&self, random: &mut SmallRng) -> (usize, Option<DynamicMessage>) {
        let chosen: f64 = random.random();
        let mut step = self.shares.partition_point(|share| *share <= chosen).min(self.steps.len() - 1);
        while let Some(before) = self.steps[step].after {
            match self.steps[before].take() {
                Some(reply) => return (step, Some(reply)),
                None => step = before,
            }
        }
        (step, None)
    }
}

impl Source for Mix {
    fn kinds(&self) -> Vec<String> {
        self.steps.iter().map(|step| step.name.clone()).collect()
    }

    fn next(&self, number: u64) -> Request {
        // Of the number alone, so that a seed gives the same calls whoever sends them.
        let mut random = SmallRng::seed_from_u64(self.seed.wrapping_add(number));
        let (index, reply) = self.choose(&mut random);
        let step = &self.steps[index];
        let message = step.messages.make(number, &mut scope(number, &mut random, &self.keys, reply.as_ref()));
        let message = message.unwrap_or_else(|error| {
            if self.broken.reason.set(format!("{}: {error:#}", step.name)).is_ok() {
                self.broken.told.notify_one();
            }
            frame(&[])
        });
        let request = step.rpc.request(message).kind(index);
        if step.kept.is_some() { request.keep_reply(number) } else { request }
    }

    fn replied(&self, reply: Reply<'_>) {
        let step = &self.steps[reply.kind];
        if reply.code == Code::Ok
            && let Some(message) = reply.message()
            && let Ok(message) = DynamicMessage::decode(step.reply(), message)
        {
            step.keep(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_reflect::DescriptorPool;
    use souk_load::Target;
    use tokio::net::TcpListener;

    use super::*;
    use crate::load::messages::find_method;

    async fn mix() -> Mix {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut target = Target::default();
        let service = target.connect(&listener.local_addr().expect("its address").to_string(), 1).await.expect("it listens");
        let pool = DescriptorPool::decode(souk_proto::DESCRIPTORS).expect("the contracts");
        let keys = Arc::new(Keys::new(&BTreeMap::new()).expect("none"));
        let step = |name: &str, weight, call, data: &str, after| {
            let method = find_method(&pool, call).expect("a method");
            let messages = Messages::new(method, &[data.to_owned()], &keys).expect("a message");
            Step::new(name.to_owned(), weight, target.rpc(service, "/a/B").expect("a path"), messages, after)
        };
        let place = step("place", 1.0, "orders/PlaceOrder", r#"{"customer_id": "c-{{.RequestNumber}}"}"#, None);
        let pay = step("pay", 3.0, "orders/RecordPayment", r#"{"order_id": "{{.Reply.order_id}}"}"#, Some(0));
        Mix::new(vec![place, pay], keys, 7)
    }

    #[tokio::test]
    async fn a_step_takes_the_place_of_those_that_wait_for_its_reply() {
        let mix = mix().await;
        let kinds: Vec<_> = (0..50).map(|number| mix.next(number)).map(|request| (request.kind, request.keep_reply)).collect();
        assert!(kinds.iter().all(|kind| *kind == (0, true)), "no order was placed yet: {kinds:?}");
        let placed = souk_proto::orders::v1::PlaceOrderResponse { order_id: "o-\"1\"".into(), ..Default::default() };
        mix.replied(Reply { kind: 0, tag: 0, code: Code::Unavailable, frames: &frame(&placed.encode_to_vec()) });
        mix.replied(Reply { kind: 0, tag: 0, code: Code::Ok, frames: &frame(&placed.encode_to_vec()) });
        let paid: Vec<_> = (0..50).map(|number| mix.next(number)).filter(|request| request.kind == 1).collect();
        assert_eq!(paid.len(), 1, "one reply, used once");
        let sent = souk_proto::orders::v1::RecordPaymentRequest::decode(&paid[0].message[5..]).expect("a payment");
        assert_eq!(sent.order_id, "o-\"1\"");
        assert_eq!(mix.broken().reason(), None);
    }
}
