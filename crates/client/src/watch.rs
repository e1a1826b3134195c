use std::{error::Error as _, time::Duration};

use futures::{Stream, stream};
use http::uri::PathAndQuery;
use prost::Message;
use souk_proto::{
    cart::v1::{Cart, GetCartRequest, GetCartResponse, WatchCartRequest, WatchCartResponse},
    common::v1::AsOf,
    orders::v1::{GetOrderRequest, GetOrderResponse, Order, OrderState, WatchOrderRequest, WatchOrderResponse},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming, client::Grpc};
use tonic_prost::ProstCodec;

use crate::{
    Error, Query, Session,
    retry::{delay, is_retryable},
    rpc::Door,
};

/// The service sends a heartbeat every 10 s: after three of them missed the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// The service answers, or says why not, within the 5 s that it waits for a token.
const OPENING: Duration = Duration::from_secs(10);
/// How long a broken watch is taken up again without a single message before the caller is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be watched: how it is read at first, and how it is followed.
trait Watched: Send + 'static {
    type Row: Send + 'static;
    type Get: Query<Reply = Self::Got>;
    type Got: Send;
    type Watch: Message + 'static;
    type Reply: Message + Default + Send + 'static;
    /// `/package.Service/Method`
    const PATH: &'static str;

    fn get(id: String) -> Self::Get;
    fn row(got: Self::Got) -> Option<Self::Row>;
    fn watch(id: String, token: String) -> Self::Watch;
    fn split(reply: Self::Reply) -> (Option<Self::Row>, Option<AsOf>);
    /// Whether nothing more will happen to it.
    fn has_ended(row: &Self::Row) -> bool;
}

struct WatchedOrder;

impl Watched for WatchedOrder {
    type Row = Order;
    type Get = GetOrderRequest;
    type Got = GetOrderResponse;
    type Watch = WatchOrderRequest;
    type Reply = WatchOrderResponse;
    const PATH: &'static str = "/souk.orders.v1.QueryService/WatchOrder";

    fn get(order_id: String) -> GetOrderRequest {
        GetOrderRequest { order_id, token: String::new() }
    }

    fn row(got: GetOrderResponse) -> Option<Order> {
        got.order
    }

    fn watch(order_id: String, token: String) -> WatchOrderRequest {
        WatchOrderRequest { order_id, token }
    }

    fn split(reply: WatchOrderResponse) -> (Option<Order>, Option<AsOf>) {
        (reply.order, reply.as_of)
    }

    /// Nothing but a payment that comes too late.
    fn has_ended(order: &Order) -> bool {
        matches!(order.state(), OrderState::Delivered | OrderState::Rejected | OrderState::Cancelled)
    }
}

struct WatchedCart;

impl Watched for WatchedCart {
    type Row = Cart;
    type Get = GetCartRequest;
    type Got = GetCartResponse;
    type Watch = WatchCartRequest;
    type Reply = WatchCartResponse;
    const PATH: &'static str = "/souk.cart.v1.QueryService/WatchCart";

    fn get(customer_id: String) -> GetCartRequest {
        GetCartRequest { customer_id, token: String::new() }
    }

    fn row(got: GetCartResponse) -> Option<Cart> {
        got.cart
    }

    fn watch(customer_id: String, token: String) -> WatchCartRequest {
        WatchCartRequest { customer_id, token }
    }

    fn split(reply: WatchCartResponse) -> (Option<Cart>, Option<AsOf>) {
        (reply.cart, reply.as_of)
    }

    fn has_ended(_: &Cart) -> bool {
        false
    }
}

impl Session {
    /// The order as it is now and after every change, until it ends; changes in quick succession may come as one. A
    /// broken connection is taken up again after the last state seen, at whichever replica answers, for up to a minute.
    ///
    /// The first state comes from a query with the session's token, so that it contains the session's own commands. An error
    /// with reason LOG_RESTORED ends it when a restore took back what it had shown; the session has forgotten its tokens
    /// then, and the next watch shows what is there.
    pub fn watch_order(&self, order_id: impl Into<String>) -> impl Stream<Item = Result<Order, Error>> + Send + 'static {
        watch::<WatchedOrder>(self.clone(), order_id.into())
    }

    /// The customer's cart, in the same way; it never ends.
    pub fn watch_cart(&self, customer_id: impl Into<String>) -> impl Stream<Item = Result<Cart, Error>> + Send + 'static {
        watch::<WatchedCart>(self.clone(), customer_id.into())
    }
}

fn watch<W: Watched>(session: Session, id: String) -> impl Stream<Item = Result<W::Row, Error>> + Send + 'static {
    stream::try_unfold(State::<W>::Begin(session, id), State::next)
}

/// A watch under way.
struct Watch<W: Watched> {
    session: Session,
    id: String,
    /// Token of the last reply: where to go on.
    token: String,
    stream: Option<Streaming<W::Reply>>,
    failures: u32,
    heard: Instant,
}

enum Step<R> {
    Row(R),
    Heartbeat,
    End,
}

enum State<W: Watched> {
    Begin(Session, String),
    Watching(Box<Watch<W>>),
    Over,
}

impl<W: Watched> State<W> {
    async fn next(self) -> Result<Option<(W::Row, Self)>, Error> {
        let mut watch = match self {
            Self::Over => return Ok(None),
            Self::Begin(session, id) => return Watch::begin(session, id).await.map(Some),
            Self::Watching(watch) => watch,
        };
        match watch.next_row().await? {
            Some(row) => {
                let next = if W::has_ended(&row) { Self::Over } else { Self::Watching(watch) };
                Ok(Some((row, next)))
            }
            None => Ok(None),
        }
    }
}

impl<W: Watched> Watch<W> {
    async fn begin(session: Session, id: String) -> Result<(W::Row, State<W>), Error> {
        let got = session.query(W::get(id.clone())).await?;
        let token = W::Get::as_of(&got).map(|as_of| as_of.token.clone()).unwrap_or_default();
        let Some(row) = W::row(got) else { return Err(Error::new(Status::internal("a reply without its entity"), 1, "")) };
        if W::has_ended(&row) {
            return Ok((row, State::Over));
        }
        let watch = Self { session, id, token, stream: None, failures: 0, heard: Instant::now() };
        Ok((row, State::Watching(Box::new(watch))))
    }

    async fn next_row(&mut self) -> Result<Option<W::Row>, Error> {
        loop {
            match self.step().await {
                Ok(step) => {
                    (self.failures, self.heard) = (0, Instant::now());
                    match step {
                        Step::Row(row) => return Ok(Some(row)),
                        Step::Heartbeat => {}
                        Step::End => return Ok(None),
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.failures += 1;
                    if !is_retryable(&status, true) || self.heard.elapsed() > PATIENCE {
                        let error = Error::new(status, self.failures, "");
                        if error.reason() == "LOG_RESTORED" {
                            self.session.forget();
                        }
                        return Err(error);
                    }
                    sleep(delay(&status, self.failures)).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Step<W::Row>, Status> {
        if self.stream.is_none() {
            self.stream = Some(self.open().await?);
        }
        let Some(stream) = &mut self.stream else { return Ok(Step::End) };
        let silent = |_| Status::unavailable("no heartbeat from the service");
        let Some(reply) = timeout(SILENCE, stream.message()).await.map_err(silent)?? else { return Ok(Step::End) };
        let (row, as_of) = W::split(reply);
        if let Some(as_of) = as_of {
            self.session.merge_token(&as_of.token);
            self.token = as_of.token;
        }
        Ok(row.map_or(Step::Heartbeat, Step::Row))
    }

    async fn open(&self) -> Result<Streaming<W::Reply>, Status> {
        let turn = self.session.souk().turn(Door::Query).ok_or_else(|| Status::internal("there is always a query endpoint"))?;
        let request = self.session.request(W::watch(self.id.clone(), self.token.clone()));
        let opening = async {
            let mut grpc = Grpc::new(turn.channel.clone());
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let codec = ProstCodec::<W::Watch, W::Reply>::default();
            grpc.server_streaming(request, PathAndQuery::from_static(W::PATH), codec).await
        };
        // A replica that hangs must not be waited for: another may answer.
        let silent = |_| Status::unavailable("no answer from the service");
        let opened = timeout(OPENING, opening).await;
        turn.ended(!opened.as_ref().map_or(true, |result| result.as_ref().is_err_and(|status| status.source().is_some())));
        Ok(opened.map_err(silent)??.into_inner())
    }
}
