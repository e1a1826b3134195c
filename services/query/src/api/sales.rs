use prost::Message;
use souk_event_sourcing::UnixMillis;
use souk_proto::{
    common::v1::Money,
    orders::v1::{GetSalesSummaryRequest, GetSalesSummaryResponse, SalesRow},
};
use souk_runtime::{Deadline, Failure};
use souk_views::{
    Day,
    read::{SalesCursor, SalesFilter, Scope, orders_stale_since, summarize_sales},
};
use tonic::Request;

use crate::{
    check::Check,
    core::Core,
    page::{Binding, CursorReader, CursorWriter, InvalidPageToken},
};

/// Days of one summary at most, and when the first is not named.
const MAX_DAYS: i32 = 366;
const DEFAULT_DAYS: i32 = 30;

/// Where a page begins, and the days of the first page: "today" may have passed since.
struct Continued {
    days: (Day, Day),
    after: SalesCursor,
}

/// Units and revenue per product and day.
pub(super) async fn summarize(core: &Core, request: Request<GetSalesSummaryRequest>) -> Result<GetSalesSummaryResponse, Failure> {
    let message = request.get_ref();
    let bound = GetSalesSummaryRequest { page_size: 0, page_token: String::new(), token: String::new(), ..message.clone() }.encode_to_vec();
    let binding = Binding { list: "orders.sales", filter: &bound };
    let mut check = Check::default();
    let product_id = (!message.product_id.is_empty()).then(|| message.product_id.clone());
    if let Some(id) = &product_id {
        check.field("product_id", core.routing.product(id));
    }
    let days = days(&mut check, message, Day::of(UnixMillis::now()));
    let limit = check.page_size(message.page_size);
    let continued = check.page_token(&core.token_key, binding, &message.page_token, read_cursor);
    let token = check.token(&core.token_key, &message.token, request.metadata().as_ref());
    check.finish()?;
    let (from, to) = continued.as_ref().map_or(days, |continued| continued.days);
    let after = continued.map(|continued| continued.after);
    let filter = SalesFilter { product_id, from, to };
    let until = core.patience(Deadline::of(&request));
    let query = |demand| summarize_sales(&core.store, &filter, after.as_ref(), limit, demand);
    let page = core.listed(Scope::All, &token, until, query).await?;
    let stale = core.listed(Scope::All, &token, until, |demand| orders_stale_since(&core.store, demand)).await?;
    let stale_since = stale.rows.into_iter().min();
    let next_page_token = match page.rows.last() {
        Some(last) if page.more => binding.encode(&core.token_key, &write_cursor((from, to), &last.key)),
        _ => String::new(),
    };
    Ok(GetSalesSummaryResponse {
        as_of: Some(core.as_of(core.freshness_of(&page.as_of, stale_since))),
        rows: page.rows.into_iter().map(row).collect(),
        next_page_token,
    })
}

/// First and last day, the defaults filled in.
fn days(check: &mut Check, message: &GetSalesSummaryRequest, today: Day) -> (Day, Day) {
    let to = match message.to_day.as_str() {
        "" => today,
        text => check.field("to_day", text.parse::<Day>()).unwrap_or(today),
    };
    let from = match message.from_day.as_str() {
        "" => to.plus(-DEFAULT_DAYS),
        text => check.field("from_day", text.parse::<Day>()).unwrap_or(to),
    };
    let fine = from <= to && to.0 - from.0 < MAX_DAYS;
    check.require(fine, "from_day", &format!("want a day up to {} days before to_day", MAX_DAYS - 1));
    (from, to)
}

fn write_cursor(days: (Day, Day), after: &SalesCursor) -> Vec<u8> {
    let writer = CursorWriter::default().number(days.0.0.into()).number(days.1.0.into());
    writer.number(after.day.0.into()).text(&after.product_id).text(&after.currency).finish()
}

fn read_cursor(cursor: &mut CursorReader<'_>) -> Result<Continued, InvalidPageToken> {
    let mut day = || cursor.number().and_then(|day| i32::try_from(day).map(Day).map_err(|_| InvalidPageToken));
    let (days, day) = ((day()?, day()?), day()?);
    Ok(Continued { days, after: SalesCursor { day, product_id: cursor.text()?, currency: cursor.text()? } })
}

fn row(row: souk_views::read::SalesRow) -> SalesRow {
    SalesRow {
        day: row.key.day.to_string(),
        product_id: row.key.product_id,
        units: row.units,
        revenue: Some(Money { currency: row.key.currency, minor_units: row.revenue }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(from_day: &str, to_day: &str) -> Result<(String, String), Vec<String>> {
        let mut check = Check::default();
        let message = GetSalesSummaryRequest { from_day: from_day.into(), to_day: to_day.into(), ..Default::default() };
        let (from, to) = days(&mut check, &message, "2025-03-31".parse().unwrap());
        match check.finish() {
            Ok(()) => Ok((from.to_string(), to.to_string())),
            Err(failure) => Err(failure.field_violations.into_iter().map(|(field, _)| field).collect()),
        }
    }

    #[test]
    fn the_days_have_defaults_and_bounds() {
        let days = |from: &str, to: &str| Ok((from.to_owned(), to.to_owned()));
        assert_eq!(resolved("", ""), days("2025-03-01", "2025-03-31"));
        assert_eq!(resolved("", "2024-02-29"), days("2024-01-30", "2024-02-29"));
        assert_eq!(resolved("2024-03-31", ""), days("2024-03-31", "2025-03-31"));
        assert_eq!(resolved("2024-03-30", ""), Err(vec!["from_day".to_owned()]));
        assert_eq!(resolved("2025-04-01", ""), Err(vec!["from_day".to_owned()]));
        assert_eq!(resolved("yesterday", "2025-02-30"), Err(vec!["to_day".to_owned(), "from_day".to_owned()]));
    }

    #[test]
    fn a_cursor_keeps_the_days_of_the_first_page() {
        let after = SalesCursor { day: Day(20_000), product_id: "p-1".into(), currency: "EUR".into() };
        let bytes = write_cursor((Day(-1), Day(20_001)), &after);
        let read = read_cursor(&mut CursorReader::new(&bytes)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((read.days, read.after), ((Day(-1), Day(20_001)), after));
    }
}
