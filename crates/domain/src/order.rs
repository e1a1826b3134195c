use std::{collections::BTreeSet, fmt};

use souk_event_sourcing::{Decider, UnixMillis, Version};

use crate::{
    CancelReason, Carrier, Catalog, CustomerId, InvalidValue, Money, PaymentReference, ProductId, Quantity, Rejection, TrackingNumber, cart,
};

/// Category of order streams.
pub const CATEGORY: &str = "order";

/// Most payments on record: an order that ended may be paid again and again, each time owing a refund.
const MAX_PAYMENTS: usize = 100;

/// The rules of an order: reserving → awaiting payment → paid → shipped → delivered; rejected; cancelled.
#[derive(Debug)]
pub struct Order;

/// What happened to an order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    OrderPlaced(Placed),
    /// Every line is held; payment is awaited.
    OrderReserved,
    /// At least one line was refused.
    OrderRejected {
        refusals: Vec<Refusal>,
    },
    PaymentRecorded {
        reference: PaymentReference,
        amount: Money,
        refund_due: bool,
    },
    OrderCancelled {
        cause: CancelCause,
        reason: CancelReason,
        refund_due: bool,
    },
    OrderShipped(Shipment),
    OrderDelivered,
}

/// An order as it was placed: prices and product versions stay with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub customer: CustomerId,
    pub lines: Vec<Line>,
    pub total: Money,
    pub payment_deadline: UnixMillis,
}

/// Units of one product at the price that was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub product: ProductId,
    pub quantity: Quantity,
    pub unit_price: Money,
    pub product_version: Version,
}

/// Why a line could not be reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub product: ProductId,
    /// Reason of the stock's refusal, such as `INSUFFICIENT_STOCK`.
    pub reason: String,
    /// Units that were available then.
    pub available: i64,
}

/// Why an order was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelCause {
    Caller,
    PaymentDeadline,
}

/// How an order left the house.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shipment {
    pub carrier: Carrier,
    pub tracking_number: TrackingNumber,
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum OrderStatus {
    /// Never placed.
    #[default]
    Missing,
    Reserving,
    AwaitingPayment,
    Paid,
    Shipped,
    Delivered,
    Rejected,
    Cancelled,
}

impl OrderStatus {
    /// Whether the units held for an order in this state are still counted on.
    pub const fn needs_stock(self) -> bool {
        !matches!(self, Self::Missing | Self::Rejected | Self::Cancelled)
    }
}

impl fmt::Display for OrderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Reserving => "reserving",
            Self::AwaitingPayment => "awaiting payment",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
        })
    }
}

/// An order as its events left it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub status: OrderStatus,
    /// `None` until it was placed.
    pub placed: Option<Placed>,
    /// References of all payments on record, also those that owe a refund.
    pub payments: Vec<PaymentReference>,
    pub shipment: Option<Shipment>,
}

impl State {
    /// What has to be paid.
    pub fn total(&self) -> Option<Money> {
        self.placed.as_ref().map(|placed| placed.total)
    }
}

/// Lines of a new order: 1–100, each product once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderLines(Vec<cart::Line>);

impl OrderLines {
    /// # Errors
    /// No line, over 100 lines, or a product twice.
    pub fn new(lines: Vec<cart::Line>) -> Result<Self, InvalidValue> {
        if lines.is_empty() || lines.len() > cart::MAX_LINES {
            return Err(InvalidValue("want 1–100 lines"));
        }
        let products: BTreeSet<_> = lines.iter().map(|line| &line.product).collect();
        if products.len() < lines.len() { Err(InvalidValue("want each product once")) } else { Ok(Self(lines)) }
    }

    pub fn as_slice(&self) -> &[cart::Line] {
        &self.0
    }
}

/// What an order is placed with, besides its lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    pub customer: CustomerId,
    /// Every product of the lines, as its owner answered.
    pub catalog: Catalog,
    /// Refused when the prices add up to something else.
    pub expected_total: Option<Money>,
    pub payment_deadline: UnixMillis,
}

/// What can be asked of an order.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Place { lines: Vec<cart::Line>, terms: Terms },
    RecordReservation { refusals: Vec<Refusal> },
    RecordPayment { reference: PaymentReference, amount: Money },
    Cancel { reason: CancelReason },
    ExpirePayment { now: UnixMillis },
    RecordShipment(Shipment),
    RecordDelivery,
}

impl Decider for Order {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    fn evolve(mut state: State, event: &Event) -> State {
        match event {
            Event::OrderPlaced(placed) => {
                state = State { status: OrderStatus::Reserving, placed: Some(placed.clone()), ..State::default() };
            }
            Event::OrderReserved => state.status = OrderStatus::AwaitingPayment,
            Event::OrderRejected { .. } => state.status = OrderStatus::Rejected,
            Event::PaymentRecorded { reference, refund_due, .. } => {
                state.payments.push(reference.clone());
                if !refund_due {
                    state.status = OrderStatus::Paid;
                }
            }
            Event::OrderCancelled { .. } => state.status = OrderStatus::Cancelled,
            Event::OrderShipped(shipment) => {
                state.status = OrderStatus::Shipped;
                state.shipment = Some(shipment.clone());
            }
            Event::OrderDelivered => state.status = OrderStatus::Delivered,
        }
        state
    }

    fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
        match (&state.placed, command) {
            (None, Command::Place { lines, terms }) => place(lines, terms),
            (Some(_), Command::Place { .. }) => Err(Rejection::OrderAlreadyExists),
            (None, _) => Err(Rejection::OrderNotFound),
            (Some(_), Command::RecordReservation { refusals }) => Ok(record_reservation(state.status, refusals)),
            (Some(placed), Command::RecordPayment { reference, amount }) => record_payment(state, placed, reference, *amount),
            (Some(_), Command::Cancel { reason }) => cancel(state.status, reason),
            (Some(placed), Command::ExpirePayment { now }) => Ok(expire_payment(state.status, placed, *now)),
            (Some(_), Command::RecordShipment(shipment)) => record_shipment(state, shipment),
            (Some(_), Command::RecordDelivery) => match state.status {
                OrderStatus::Shipped => Ok(vec![Event::OrderDelivered]),
                OrderStatus::Delivered => Ok(vec![]),
                status => Err(Rejection::NotShipped { status }),
            },
        }
    }
}

fn place(lines: &[cart::Line], terms: &Terms) -> Result<Vec<Event>, Rejection> {
    let lines = priced(lines, &terms.catalog)?;
    let total = total(&lines)?;
    match terms.expected_total {
        Some(expected) if expected != total => Err(Rejection::TotalChanged { total }),
        _ => Ok(vec![Event::OrderPlaced(Placed {
            customer: terms.customer.clone(),
            lines,
            total,
            payment_deadline: terms.payment_deadline,
        })]),
    }
}

/// The lines at the prices of the catalog. A refusal names all products it is about.
fn priced(lines: &[cart::Line], catalog: &Catalog) -> Result<Vec<Line>, Rejection> {
    let (mut unknown, mut missing, mut unsold) = (vec![], vec![], vec![]);
    let mut priced = Vec::with_capacity(lines.len());
    for cart::Line { product, quantity } in lines {
        let facts = match catalog.get(product) {
            None => {
                unknown.push(product.clone());
                continue;
            }
            Some(None) => {
                missing.push(product.clone());
                continue;
            }
            Some(Some(facts)) => facts,
        };
        match facts.sale_price() {
            None => unsold.push(product.clone()),
            Some(unit_price) => {
                priced.push(Line { product: product.clone(), quantity: *quantity, unit_price, product_version: facts.version });
            }
        }
    }
    match () {
        () if !unknown.is_empty() => Err(Rejection::LookUpIncomplete { products: unknown }),
        () if !missing.is_empty() => Err(Rejection::ProductNotFound { products: missing }),
        () if !unsold.is_empty() => Err(Rejection::ProductNotForSale { products: unsold }),
        () => Ok(priced),
    }
}

fn total(lines: &[Line]) -> Result<Money, Rejection> {
    let (first, rest) = lines.split_first().ok_or(Rejection::CartEmpty)?;
    if rest.iter().any(|line| line.unit_price.currency != first.unit_price.currency) {
        return Err(Rejection::CurrencyMismatch);
    }
    let zero = Money::new(first.unit_price.currency, 0);
    let sum = lines.iter().try_fold(zero, |sum, line| sum.checked_add(line.unit_price.checked_mul(line.quantity)?));
    sum.ok_or(Rejection::TotalOutOfRange)
}

/// An order that has moved on, as by a cancellation meanwhile, takes no notice.
fn record_reservation(status: OrderStatus, refusals: &[Refusal]) -> Vec<Event> {
    match status {
        OrderStatus::Reserving if refusals.is_empty() => vec![Event::OrderReserved],
        OrderStatus::Reserving => vec![Event::OrderRejected { refusals: refusals.to_vec() }],
        _ => vec![],
    }
}

/// Money that arrives after the order ended has arrived all the same: it is recorded and owed back.
fn record_payment(state: &State, placed: &Placed, reference: &PaymentReference, amount: Money) -> Result<Vec<Event>, Rejection> {
    if amount != placed.total {
        return Err(Rejection::PaymentMismatch { total: placed.total });
    }
    if state.payments.contains(reference) {
        return Ok(vec![]);
    }
    let recorded = |refund_due| Ok(vec![Event::PaymentRecorded { reference: reference.clone(), amount, refund_due }]);
    match state.status {
        OrderStatus::AwaitingPayment => recorded(false),
        OrderStatus::Rejected | OrderStatus::Cancelled if state.payments.len() >= MAX_PAYMENTS => Err(Rejection::TooManyPayments),
        OrderStatus::Rejected | OrderStatus::Cancelled => recorded(true),
        OrderStatus::Paid | OrderStatus::Shipped | OrderStatus::Delivered => Err(Rejection::AlreadyPaid),
        status @ (OrderStatus::Missing | OrderStatus::Reserving) => Err(Rejection::NotAwaitingPayment { status }),
    }
}

fn cancel(status: OrderStatus, reason: &CancelReason) -> Result<Vec<Event>, Rejection> {
    let refund_due = status == OrderStatus::Paid;
    match status {
        OrderStatus::Cancelled => Ok(vec![]),
        OrderStatus::Reserving | OrderStatus::AwaitingPayment | OrderStatus::Paid => {
            Ok(vec![Event::OrderCancelled { cause: CancelCause::Caller, reason: reason.clone(), refund_due }])
        }
        status => Err(Rejection::NotCancellable { status }),
    }
}

fn expire_payment(status: OrderStatus, placed: &Placed, now: UnixMillis) -> Vec<Event> {
    if status != OrderStatus::AwaitingPayment || now < placed.payment_deadline {
        return vec![];
    }
    vec![Event::OrderCancelled { cause: CancelCause::PaymentDeadline, reason: CancelReason::default(), refund_due: false }]
}

fn record_shipment(state: &State, shipment: &Shipment) -> Result<Vec<Event>, Rejection> {
    match (&state.shipment, state.status) {
        (Some(shipped), _) if shipped == shipment => Ok(vec![]),
        (Some(_), _) => Err(Rejection::AlreadyShipped),
        (None, OrderStatus::Paid) => Ok(vec![Event::OrderShipped(shipment.clone())]),
        (None, status) => Err(Rejection::NotPaid { status }),
    }
}

#[cfg(test)]
mod tests;
