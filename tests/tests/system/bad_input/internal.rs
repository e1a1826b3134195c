//! The internal ports: for our own processes, which err as well.

use anyhow::Result;
use souk_proto::{
    catalog::v1::{LookUpProductsRequest, lookup_service_client::LookupServiceClient as ProductLookups},
    internal::v1::{parked_entity_service_client::ParkedEntityServiceClient, topology_service_client::TopologyServiceClient, *},
    log::v1::{event_log_service_client::EventLogServiceClient, *},
    orders::v1::{
        ExpirePaymentRequest, LineRefusal, LookUpOrderRequest, RecordReservationRequest,
        lookup_service_client::LookupServiceClient as OrderLookups, process_service_client::ProcessServiceClient as OrderProcess,
    },
    stock::v1::{ExpireReservationRequest, process_service_client::ProcessServiceClient as StockProcess},
};
use tonic::Code::{InvalidArgument as Bad, NotFound, OutOfRange};
use uuid::Uuid;

use super::{NO_ORDER, Scene, Table};

pub async fn log_and_look_ups(table: &mut Table, scene: &Scene) -> Result<()> {
    let endpoint = scene.system.stack.endpoint("command_internal");
    let mut log = EventLogServiceClient::connect(endpoint.clone()).await?;
    for (region, partition) in [(1, 64), (2, 0), (0, 0), (u32::MAX, 0), (1, u32::MAX), (65_537, 0)] {
        let what = format!("log {region}/{partition}");
        let read = log.read_range(ReadRangeRequest { region, partition, ..Default::default() });
        table.call("souk.log.v1.EventLogService/ReadRange", &what, read).await?.says(NotFound, "NO_SUCH_LOG")?;
        let tail = log.tail(TailRequest { region, partition, from_position: 1, with_ledger: false });
        table.call("souk.log.v1.EventLogService/Tail", &what, tail).await?.says(NotFound, "NO_SUCH_LOG")?;
        let heads = log.get_heads(GetHeadsRequest { region, partitions: vec![partition] });
        table.call("souk.log.v1.EventLogService/GetHeads", &what, heads).await?.says(NotFound, "NO_SUCH_LOG")?;
    }
    for from_position in [1_000_000, i64::MAX.cast_unsigned(), u64::MAX] {
        let read = log.read_range(ReadRangeRequest { region: 1, partition: 0, from_position, limit: u32::MAX });
        let refused = table.call("souk.log.v1.EventLogService/ReadRange", &format!("from {from_position}"), read).await?;
        refused.says(OutOfRange, "BEYOND_HEAD")?;
    }

    let mut products = ProductLookups::connect(endpoint.clone()).await?;
    let mut look_up = async |what: &str, ids: &[&str]| {
        let product_ids = ids.iter().map(|id| id.to_string()).collect();
        let call = products.look_up_products(LookUpProductsRequest { product_ids });
        table.call("souk.catalog.v1.LookupService/LookUpProducts", what, call).await
    };
    look_up("nothing", &[]).await?.names(&["product_ids"])?;
    look_up("a hundred and one", &["p-1"; 101]).await?.names(&["product_ids"])?;
    look_up("a bad id among good ones", &["p-1", ""]).await?.names(&["product_ids[1]"])?;
    let mut orders = OrderLookups::connect(endpoint).await?;
    let call = orders.look_up_order(LookUpOrderRequest { order_id: "o-1".into() });
    table.call("souk.orders.v1.LookupService/LookUpOrder", "bad order", call).await?.names(&["order_id"])
}

pub async fn process(table: &mut Table, scene: &Scene) -> Result<()> {
    let endpoint = scene.system.stack.endpoint("command_internal");
    let request_id = || Uuid::now_v7().to_string();
    let mut orders = OrderProcess::connect(endpoint.clone()).await?;
    let path = "souk.orders.v1.ProcessService/RecordReservation";
    let refusal = |product: &str, reason: &str| LineRefusal { product_id: product.into(), reason: reason.into(), available: 0 };
    let record =
        |order: &str, refusals: Vec<LineRefusal>| RecordReservationRequest { request_id: request_id(), order_id: order.into(), refusals };
    table.call(path, "bad order", orders.record_reservation(record("x", vec![]))).await?.names(&["order_id"])?;
    let unknown = table.call(path, "unknown order", orders.record_reservation(record(NO_ORDER, vec![]))).await?;
    unknown.says(NotFound, "ORDER_NOT_FOUND")?;
    let many = record(&scene.order, vec![refusal("p-1", "X"); 101]);
    table.call(path, "a hundred and one refusals", orders.record_reservation(many)).await?.names(&["refusals"])?;
    let bad = record(&scene.order, vec![refusal("p 1", "X"), refusal("p-1", "")]);
    let refused = table.call(path, "bad refusals", orders.record_reservation(bad)).await?;
    refused.names(&["refusals[0].product_id", "refusals[1].reason"])?;

    let path = "souk.orders.v1.ProcessService/ExpirePayment";
    let expire = |order: &str| ExpirePaymentRequest { request_id: request_id(), order_id: order.into() };
    table.call(path, "bad order", orders.expire_payment(expire(""))).await?.names(&["order_id"])?;
    let unknown = table.call(path, "unknown order", orders.expire_payment(expire(NO_ORDER))).await?;
    unknown.says(NotFound, "ORDER_NOT_FOUND")?;

    let mut stock = StockProcess::connect(endpoint).await?;
    let path = "souk.stock.v1.ProcessService/ExpireReservation";
    let expire = |product: &str, order: &str| ExpireReservationRequest {
        request_id: request_id(),
        product_id: product.into(),
        order_id: order.into(),
    };
    table.call(path, "bad ids", stock.expire_reservation(expire("", "."))).await?.names(&["product_id", "order_id"])?;
    let unknown = table.call(path, "unknown product", stock.expire_reservation(expire("none", "o-1"))).await?;
    unknown.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let anonymous = ExpireReservationRequest { request_id: String::new(), ..expire("p-1", "o-1") };
    table.call(path, "no request id", stock.expire_reservation(anonymous)).await?.names(&["request_id"])
}

pub async fn topology(table: &mut Table, scene: &Scene) -> Result<()> {
    let mut topologies = TopologyServiceClient::connect(scene.system.stack.endpoint("command_internal")).await?;
    let path = "souk.internal.v1.TopologyService/ApplyTopology";
    let region = |number: u32, name: &str| Region { number, name: name.into(), command_internal: "http://127.0.0.1:1".into() };
    let good = Topology { version: 1, regions: vec![region(1, "local")], homes: vec![1; 64] };
    let bad = [
        ("nothing", Topology::default()),
        ("a later version than the next", Topology { version: 7, ..good.clone() }),
        ("no regions", Topology { regions: vec![], ..good.clone() }),
        ("another region alone", Topology { regions: vec![region(2, "us")], homes: vec![2; 64], ..good.clone() }),
        ("a number twice", Topology { regions: vec![region(1, "local"), region(1, "us")], ..good.clone() }),
        ("a number no region has", Topology { regions: vec![region(1, "local"), region(65_536, "us")], ..good.clone() }),
        ("a name with a dot", Topology { regions: vec![region(1, "lo.cal")], ..good.clone() }),
        ("a home in no region", Topology { homes: vec![2; 64], ..good.clone() }),
        ("too few homes", Topology { homes: vec![1; 63], ..good.clone() }),
        ("more homes than there can be", Topology { homes: vec![1; 5000], ..good.clone() }),
    ];
    for (what, topology) in bad {
        let apply = topologies.apply_topology(ApplyTopologyRequest { topology: Some(topology) });
        table.call(path, what, apply).await?.says(Bad, "INVALID_TOPOLOGY")?;
    }
    Ok(())
}

pub async fn parked(table: &mut Table, scene: &Scene) -> Result<()> {
    let mut parked = ParkedEntityServiceClient::connect(scene.system.stack.endpoint("projector_internal")).await?;
    let path = "souk.internal.v1.ParkedEntityService/ListParkedEntities";
    let list = ListParkedEntitiesRequest { page_size: -1, ..Default::default() };
    let refused = table.call(path, "page of less than nothing", parked.list_parked_entities(list)).await?;
    refused.tells(Bad, "INVALID_PAGE_SIZE", &["page_size"])?;
    for token in ["x", "1/2", "1/2/", "99999999/0/stock-p-1", "1/0/\0"] {
        let list = ListParkedEntitiesRequest { page_token: token.into(), ..Default::default() };
        let refused = table.call(path, &format!("page token {token:?}"), parked.list_parked_entities(list)).await?;
        refused.tells(Bad, "INVALID_PAGE_TOKEN", &["page_token"])?;
    }
    let path = "souk.internal.v1.ParkedEntityService/ListParkedEvents";
    let list = ListParkedEventsRequest { stream: "stock-p-1".into(), page_token: "-1".into(), ..Default::default() };
    let refused = table.call(path, "forged page token", parked.list_parked_events(list)).await?;
    refused.tells(Bad, "INVALID_PAGE_TOKEN", &["page_token"])?;
    for (stream, code, reason) in [("", Bad, "INVALID_STREAM"), ("p1", Bad, "INVALID_STREAM"), ("stock-p-1", NotFound, "ENTITY_NOT_PARKED")]
    {
        let field = |reason: &str| if reason == "INVALID_STREAM" { vec!["stream"] } else { vec![] };
        let stream = || stream.to_owned();
        let what = format!("stream {:?}", stream());
        let list = parked.list_parked_events(ListParkedEventsRequest { stream: stream(), ..Default::default() });
        let path = "souk.internal.v1.ParkedEntityService/ListParkedEvents";
        table.call(path, &what, list).await?.tells(code, reason, &field(reason))?;
        let replay = parked.replay_parked_entity(ReplayParkedEntityRequest { stream: stream(), validate_only: true });
        let path = "souk.internal.v1.ParkedEntityService/ReplayParkedEntity";
        table.call(path, &what, replay).await?.tells(code, reason, &field(reason))?;
        let drop = parked.drop_parked_entity(DropParkedEntityRequest { stream: stream() });
        let path = "souk.internal.v1.ParkedEntityService/DropParkedEntity";
        table.call(path, &what, drop).await?.tells(code, reason, &field(reason))?;
    }
    Ok(())
}
