use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use souk_domain::{Catalog, Command, CustomerId, Entity, OrderId, ProductId, ReservationId};
use souk_event_sourcing::{Etag, LogId, LogPosition, MintedId, Region, RequestId, RoutingKey, Token, UnixMillis, Version};
use souk_event_store::UntimelyRequestId;
use souk_proto::{common::v1::Money, orders::v1::OrderState};
use souk_runtime::{Deadline, Failure, Violations};
use tonic::{Request, Response, Status};

use super::{
    convert,
    failure::failure,
    lookups,
    route::{Next, Route},
};
use crate::{
    committer::CommandError,
    gateway::{Call, Gateway},
};

/// How often a command whose look-ups were overtaken gathers them again.
const LOOK_UP_ATTEMPTS: u32 = 4;

/// One command RPC: how its request becomes a command.
pub(super) trait CommandRpc: Message + Clone + Default + 'static {
    /// Full name, as it stands in the ledger.
    const METHOD: &'static str;
    type Response: Reply;

    fn request_id(&self) -> &str;

    /// Empty when the caller sets no condition.
    fn etag(&self) -> &str {
        ""
    }

    /// The request as it is remembered and compared: without what does not belong to its meaning.
    fn meaning(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads the fields, naming every bad one; `None` only when there was one.
    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft>;
}

/// What a draft may depend on besides its request.
pub(super) struct Context<'a> {
    pub gateway: &'a Gateway,
    pub caller: &'a str,
    /// A placeholder while the id itself is bad: the draft is then thrown away.
    pub request_id: RequestId,
    pub now: UnixMillis,
}

impl Context<'_> {
    pub fn payment_deadline(&self) -> UnixMillis {
        self.now.plus_ms(self.gateway.payment_window().as_millis() as i64)
    }

    /// Where a customer is at home, and with it the orders that the customer places.
    pub fn home(&self, customer: &CustomerId, bad: &mut Violations) -> Option<Region> {
        bad.check("customer_id", self.gateway.log(customer.key())).map(|log| log.region)
    }
}

/// A command, or what must be looked up before it is one.
pub(super) struct Draft {
    /// The id that stands first in the response.
    pub id: String,
    /// The request's field with that id.
    pub field: &'static str,
    /// Of the entity addressed, if its id was minted.
    pub minted: Option<MintedId>,
    pub order: Option<OrderId>,
    pub reservation: Option<ReservationId>,
    pub needs: Needs,
}

/// The id of an entity that a command may be about.
pub(super) trait Subject: ToString {
    /// The request's field with it.
    const FIELD: &'static str;

    fn key(&self) -> RoutingKey<'_>;
}

macro_rules! subjects {
    ($($id:ty, $field:literal;)*) => {$(
        impl Subject for $id {
            const FIELD: &'static str = $field;

            fn key(&self) -> RoutingKey<'_> {
                self.key()
            }
        }
    )*};
}

subjects! { ProductId, "product_id"; CustomerId, "customer_id"; OrderId, "order_id"; }

pub(super) enum Needs {
    Nothing(Command),
    Products(Vec<ProductId>, Box<dyn Fn(Catalog) -> Command + Send + Sync>),
    /// The products that are in a customer's cart.
    Cart(CustomerId, Box<dyn Fn(Catalog) -> Command + Send + Sync>),
    /// Whether an order still counts on its reservations.
    Order(OrderId, Box<dyn Fn(bool) -> Command + Send + Sync>),
}

impl Draft {
    pub fn new<S: Subject>(about: S, needs: Needs) -> Self {
        let minted = match about.key() {
            RoutingKey::Minted(id) => Some(id),
            RoutingKey::Chosen(_) => None,
        };
        Self { id: about.to_string(), field: S::FIELD, minted, order: None, reservation: None, needs }
    }

    /// Decides the log, before anything is looked up.
    fn key(&self) -> RoutingKey<'_> {
        self.minted.map_or(RoutingKey::Chosen(&self.id), RoutingKey::Minted)
    }

    pub fn ready(about: impl Subject, command: Command) -> Self {
        Self::new(about, Needs::Nothing(command))
    }
}

/// A response message, as far as all of them are alike.
pub(super) trait Reply: Message + Default + 'static {
    fn of(facts: &Facts) -> Self;
    fn set_token(&mut self, token: String);
}

/// What responses are made of.
pub(super) struct Facts {
    pub id: String,
    pub version: u64,
    pub etag: String,
    order: Option<OrderId>,
    state: OrderState,
    total: Option<Money>,
    kept: bool,
}

impl Facts {
    pub fn order_id(&self) -> String {
        self.order.map(|order| order.to_string()).unwrap_or_default()
    }

    pub fn state(&self) -> i32 {
        self.state.into()
    }

    pub fn total(&self) -> Option<Money> {
        self.total.clone()
    }

    pub fn kept(&self) -> bool {
        self.kept
    }
}

/// Implements [`Reply`] for responses with an id, a version, an etag, a token, and fields named like methods of [`Facts`].
macro_rules! replies {
    ($($response:ident { $id:ident $(, $extra:ident)* })*) => {$(
        impl crate::api::rpc::Reply for $response {
            fn of(facts: &crate::api::rpc::Facts) -> Self {
                Self { $id: facts.id.clone(), version: facts.version, etag: facts.etag.clone(), token: String::new(), $($extra: facts.$extra(),)* }
            }

            fn set_token(&mut self, token: String) {
                self.token = token;
            }
        }
    )*};
}
pub(super) use replies;

/// The way of every command RPC: read all fields, find home and owner, look up, decide durably, answer with a token.
pub(super) async fn run<R: CommandRpc>(gateway: &Gateway, request: Request<R>) -> Result<Response<R::Response>, Status> {
    let caller = souk_runtime::caller(request.metadata())?;
    let route = Route::of(gateway, &request);
    let message = request.into_inner();
    let parsed = parse(gateway, &caller, &message)?;
    let log = parsed.log;
    if log.region != gateway.region() {
        return route.abroad(gateway, log, R::METHOD, message).await;
    }
    loop {
        match route.next(gateway, log).await? {
            Next::Here => match carry_out(gateway, &caller, &message, &parsed).await {
                Err(CommandError::NotOwner(_)) => route.pause(log, None).await?,
                outcome => return Ok(gateway.signed(log, Response::new(outcome.map_err(failure)?))),
            },
            Next::There(home) => {
                if let Some(response) = route.forward(gateway, &home, log, R::METHOD, message.clone()).await? {
                    return Ok(response);
                }
            }
        }
    }
}

/// A call whose fields are fine.
struct Parsed {
    request_id: RequestId,
    etag: Option<Etag>,
    draft: Draft,
    log: LogId,
}

async fn carry_out<R: CommandRpc>(gateway: &Gateway, caller: &str, message: &R, parsed: &Parsed) -> Result<R::Response, CommandError> {
    let Parsed { request_id, etag, draft, log } = parsed;
    let (id, order, reservation) = (draft.id.clone(), draft.order, draft.reservation.clone());
    let mut attempts = 0;
    let answer = loop {
        let command = look_up(gateway, &draft.needs).await?;
        let call = Call {
            request_id: *request_id,
            method: R::METHOD,
            body: message.meaning().into(),
            caller: caller.to_owned(),
            traceparent: souk_runtime::telemetry::current_traceparent(),
            etag: *etag,
            received: UnixMillis::now(),
        };
        let (id, reservation, region) = (id.clone(), reservation.clone(), gateway.region());
        let respond = move |entities: &[(&Entity, Version)]| -> Bytes {
            let etag = Etag { region, version: entities[0].1 };
            R::Response::of(&facts(id.clone(), etag, order, reservation.as_ref(), entities)).encode_to_vec().into()
        };
        attempts += 1;
        match gateway.execute(*log, call, command, respond).await {
            Err(CommandError::Refused(refusal)) if refusal.is_conflict() && attempts < LOOK_UP_ATTEMPTS => {}
            outcome => break outcome?,
        }
    };
    let mut response = R::Response::decode(answer.response).map_err(|_| CommandError::DamagedReply)?;
    response.set_token(token(gateway, answer.at));
    Ok(response)
}

/// The token of a position.
pub(super) fn token(gateway: &Gateway, at: LogPosition) -> String {
    Token::from(at).encode(gateway.token_key())
}

/// The time a handler may wait for more than the command itself.
pub(super) fn patience<T>(request: &Request<T>) -> Duration {
    const MARGIN: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(30);
    Deadline::of(request).budget(MARGIN, LONGEST)
}

fn parse<R: CommandRpc>(gateway: &Gateway, caller: &str, message: &R) -> Result<Parsed, Failure> {
    let now = UnixMillis::now();
    let mut bad = Violations::new();
    let request_id = bad.check("request_id", message.request_id().parse::<RequestId>());
    let etag = match message.etag() {
        "" => None,
        text => bad.check("etag", text.parse::<Etag>()),
    };
    let context = Context { gateway, caller, request_id: request_id.unwrap_or(RequestId(uuid::Uuid::nil())), now };
    let draft = message.draft(&context, &mut bad);
    let log = draft.as_ref().and_then(|draft| bad.check(draft.field, gateway.log(draft.key())));
    bad.finish()?;
    let (Some(request_id), Some(draft), Some(log)) = (request_id, draft, log) else {
        return Err(Failure::internal("UNREAD_REQUEST", "the request could not be read"));
    };
    gateway.retention().admit(request_id, now).map_err(|error| {
        let reason = match error {
            UntimelyRequestId::TooOld => "REQUEST_ID_TOO_OLD",
            UntimelyRequestId::TooNew => "REQUEST_ID_TOO_NEW",
        };
        Failure::invalid(reason, format!("request_id: {error}")).field("request_id", error.to_string())
    })?;
    Ok(Parsed { request_id, etag, draft, log })
}

/// Most commands need nothing, so what needs room while it looks up is boxed.
async fn look_up(gateway: &Gateway, needs: &Needs) -> Result<Command, CommandError> {
    match needs {
        Needs::Nothing(command) => Ok(command.clone()),
        Needs::Products(products, build) => Ok(build(Box::pin(lookups::products(gateway, products.iter().cloned())).await?)),
        Needs::Cart(customer, build) => {
            let seen = gateway.read(gateway.log(customer.key())?, vec![customer.cart_stream()]).await?;
            let lines = seen.entities[0].0.as_cart().map(|cart| cart.lines.clone()).unwrap_or_default();
            Ok(build(Box::pin(lookups::products(gateway, lines.into_iter().map(|line| line.product))).await?))
        }
        Needs::Order(order, build) => Ok(build(Box::pin(lookups::order_needs_stock(gateway, *order)).await?)),
    }
}

fn facts(id: String, etag: Etag, order: Option<OrderId>, reservation: Option<&ReservationId>, entities: &[(&Entity, Version)]) -> Facts {
    let state = entities.iter().find_map(|(entity, _)| entity.as_order());
    let kept = reservation.is_some_and(|reservation| entities[0].0.as_stock().is_some_and(|stock| stock.hold(reservation).is_some()));
    Facts {
        id,
        version: etag.version.0,
        etag: etag.to_string(),
        order,
        state: state.map_or(OrderState::Unspecified, |order| convert::order_state(order.status)),
        total: state.and_then(|order| order.total()).map(convert::to_money),
        kept,
    }
}
