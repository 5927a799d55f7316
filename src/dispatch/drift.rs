//! The drift check: what Vercel shows, compared with what it acknowledged.
//!
//! It only asks. A difference is told, and if it is to be fixed the field is put in doubt and its row wished to be read again, so
//! that whoever decides what is desired decides on it. What is under way, in doubt, paused or limited is left alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::model::{
    AccessToken, Field, FieldSet, InstallationId, Json, Observed, Record, ResourceId, ResourceKey,
};
use crate::plan::{Verdict, classify};
use crate::store::{Drifted, Person, Store, StoreError};
use crate::vercel::Marketplace;

use super::token::{Renewed, TokenError, Tokens};

/// How many resources are looked at per page.
const PAGE_RESOURCES: u32 = 500;
/// After so many requests in a row without an answer the rest of the check is given up.
const FAILURES_MAX: u32 = 5;
/// How much of a value is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// What a check depends on.
#[derive(Debug, Clone)]
pub struct DriftSettings {
    /// The fields that the source manages, without those left to Vercel.
    pub managed: FieldSet,
    /// Requests at once.
    pub concurrency: usize,
    /// How long to wait between requests of one installation, if it has a limit of its own; then they go one by one.
    pub interval: Option<Duration>,
    /// What is looked at, and what becomes of it.
    pub order: DriftOrder,
}

/// What a check looks at, and what becomes of what it finds.
#[derive(Debug, Clone, Default)]
pub struct DriftOrder {
    /// Whether what differs is sent again.
    pub fix: bool,
    /// The person who ordered that, if one did.
    pub by: Option<Person>,
    /// Only this installation.
    pub installation_id: Option<InstallationId>,
    /// Only this field.
    pub field: Option<Field>,
}

/// Compares what Vercel shows with what it acknowledged.
pub struct DriftCheck {
    store: Arc<dyn Store>,
    marketplace: Arc<dyn Marketplace>,
    clock: Arc<dyn Clock>,
    tokens: Tokens,
    settings: DriftSettings,
}

/// Something that a check found. The values of fields that can be seen are no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Vercel shows another value than it acknowledged.
    Differs {
        /// The resource.
        key: ResourceKey,
        /// The field.
        field: Field,
        /// What was acknowledged, cut short.
        acknowledged: String,
        /// What Vercel shows, cut short; `None`: nothing.
        shown: Option<String>,
    },
    /// Vercel does not know the resource.
    Missing {
        /// The resource.
        key: ResourceKey,
    },
}

impl Finding {
    /// The resource.
    #[must_use]
    pub const fn key(&self) -> &ResourceKey {
        match self {
            Self::Differs { key, .. } | Self::Missing { key } => key,
        }
    }
}

/// Why a resource was not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// It has an open entry, or had one meanwhile.
    UnderWay,
    /// Nothing of it that can be seen was acknowledged, or all of that is in doubt.
    NothingToSee,
    /// Its installation is paused or has to wait.
    Paused,
    /// Its installation has no access token, or it is refused.
    Token,
    /// Vercel does not know its installation.
    InstallationGone,
    /// Vercel limits the rate of its installation.
    RateLimited,
    /// Vercel, or the origin of the token, gave no usable answer.
    Unavailable,
}

impl Skip {
    /// The stable name in logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnderWay => "under_way",
            Self::NothingToSee => "nothing_to_see",
            Self::Paused => "paused",
            Self::Token => "token",
            Self::InstallationGone => "installation_gone",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What a check did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriftReport {
    /// Resources of the state that were looked at.
    pub resources: u64,
    /// Those compared with what Vercel shows.
    pub compared: u64,
    /// Those with at least one difference.
    pub drifted: u64,
    /// Differences by field.
    pub by_field: BTreeMap<Field, u64>,
    /// Resources that Vercel does not know.
    pub missing: u64,
    /// Resources whose differences will be sent again.
    pub fixed: u64,
    /// Resources that were not compared, by reason.
    pub skipped: BTreeMap<Skip, u64>,
    /// Whether every resource was looked at.
    pub complete: bool,
}

/// What a check tells while it runs.
#[derive(Debug)]
pub enum DriftEvent<'a> {
    /// A difference.
    Found(&'a Finding),
    /// A page was done.
    Progress(&'a DriftReport),
}

/// Told while a check runs.
pub type DriftListener<'a> = dyn FnMut(DriftEvent<'_>) + Send + 'a;

/// What came of looking at one resource.
enum Looked {
    Compared(Vec<Difference>),
    Missing,
    Skipped(Skip),
}

struct Difference {
    field: Field,
    acknowledged: String,
    shown: Option<String>,
}

/// The installation that is being looked at.
struct Visit {
    installation_id: InstallationId,
    /// Why nothing more is asked of it.
    closed: Option<Skip>,
    token: Option<AccessToken>,
    /// Names by resource, as far as the installation's list could be read.
    listed: Option<HashMap<ResourceId, Option<String>>>,
}

impl DriftCheck {
    /// A check of everything in the state.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        marketplace: Arc<dyn Marketplace>,
        clock: Arc<dyn Clock>,
        tokens: Tokens,
        settings: DriftSettings,
    ) -> Self {
        Self {
            store,
            marketplace,
            clock,
            tokens,
            settings,
        }
    }

    /// Looks at every resource once, or until stopped.
    ///
    /// # Errors
    /// The state could not be read or written.
    pub async fn run(
        &self,
        stop: &CancellationToken,
        tell: &mut DriftListener<'_>,
    ) -> Result<DriftReport, StoreError> {
        let mut report = DriftReport::default();
        let mut after: Option<ResourceKey> = None;
        let mut visit: Option<Visit> = None;
        let mut failures = 0;
        loop {
            let keys = self
                .store
                .keys_after(after.as_ref(), PAGE_RESOURCES)
                .await?;
            let Some(last) = keys.last().cloned() else {
                report.complete = true;
                return Ok(report);
            };
            let records = self.store.records(&self.wanted(keys)).await?;
            for group in
                records.chunk_by(|one, other| one.key.installation_id == other.key.installation_id)
            {
                if stop.is_cancelled() {
                    return Ok(report);
                }
                self.look_at(group, &mut visit, &mut failures, &mut report, tell)
                    .await?;
            }
            tell(DriftEvent::Progress(&report));
            after = Some(last);
        }
    }

    fn wanted(&self, mut keys: Vec<ResourceKey>) -> Vec<ResourceKey> {
        if let Some(only) = &self.settings.order.installation_id {
            keys.retain(|key| key.installation_id == *only);
        }
        keys
    }

    /// Looks at resources of one installation.
    async fn look_at(
        &self,
        records: &[Record],
        visit: &mut Option<Visit>,
        failures: &mut u32,
        report: &mut DriftReport,
        tell: &mut DriftListener<'_>,
    ) -> Result<(), StoreError> {
        report.resources += records.len() as u64;
        let (visible, rest): (Vec<_>, Vec<_>) = records
            .iter()
            .map(|record| (record, self.comparable(record)))
            .partition(|(_, comparable)| comparable.is_ok());
        for (_, comparable) in rest {
            let skip = comparable.err().unwrap_or(Skip::NothingToSee);
            *report.skipped.entry(skip).or_default() += 1;
        }
        let Some((first, _)) = visible.first() else {
            return Ok(());
        };
        let installation_id = &first.key.installation_id;
        let mut at = match visit.take() {
            Some(visit) if visit.installation_id == *installation_id => visit,
            _ => self.visit(installation_id, failures).await?,
        };
        let at_once = match self.settings.interval {
            Some(_) => 1,
            None => self.settings.concurrency.max(1),
        };
        for some in visible.chunks(at_once) {
            let looked = join_all(
                some.iter()
                    .map(|(record, fields)| self.look(&at, record, fields.unwrap_or_default())),
            )
            .await;
            self.note(&mut at, failures, &looked);
            let records: Vec<&Record> = some.iter().map(|(record, _)| *record).collect();
            self.conclude(&records, looked, report, tell).await?;
            if let Some(interval) = self.settings.interval.filter(|_| at.closed.is_none()) {
                self.clock.sleep(interval).await;
            }
        }
        *visit = Some(at);
        Ok(())
    }

    /// The fields of a resource that can be compared now.
    fn comparable(&self, record: &Record) -> Result<FieldSet, Skip> {
        if record.entry.is_some() {
            return Err(Skip::UnderWay);
        }
        let fields: FieldSet = record
            .acknowledged
            .values
            .keys()
            .copied()
            .filter(|field| field.is_observable() || *field == Field::BillingPlan)
            .filter(|field| self.settings.managed.contains(*field))
            .filter(|field| self.settings.order.field.is_none_or(|only| only == *field))
            .filter(|field| !record.doubt.fields.contains_key(field))
            .collect();
        if fields.is_empty() {
            Err(Skip::NothingToSee)
        } else {
            Ok(fields)
        }
    }

    /// Prepares an installation: its token, and one request for the list of its resources.
    async fn visit(
        &self,
        installation_id: &InstallationId,
        failures: &mut u32,
    ) -> Result<Visit, StoreError> {
        let mut visit = Visit {
            installation_id: installation_id.clone(),
            closed: None,
            token: None,
            listed: None,
        };
        if *failures >= FAILURES_MAX {
            visit.closed = Some(Skip::Unavailable);
            return Ok(visit);
        }
        let now = self.clock.now();
        if self.store.is_blocked(installation_id, now).await? {
            visit.closed = Some(Skip::Paused);
            return Ok(visit);
        }
        match self.list(installation_id).await {
            Ok((token, listed)) => {
                *failures = 0;
                visit.token = Some(token);
                visit.listed = listed;
            }
            Err(skip) => {
                *failures += u32::from(skip == Skip::Unavailable);
                visit.closed = Some(skip);
            }
        }
        Ok(visit)
    }

    async fn list(
        &self,
        installation_id: &InstallationId,
    ) -> Result<(AccessToken, Option<HashMap<ResourceId, Option<String>>>), Skip> {
        let mut token = self.token(installation_id).await?;
        let (mut answer, mut listed) = self.marketplace.list(&token, installation_id).await;
        if classify(&answer, self.clock.now()) == Verdict::TokenRefused {
            let renewed = self.tokens.renew(installation_id, &token).await;
            if !matches!(renewed, Ok(Renewed::Changed)) {
                return Err(Skip::Token);
            }
            token = self.token(installation_id).await?;
            (answer, listed) = self.marketplace.list(&token, installation_id).await;
        }
        match classify(&answer, self.clock.now()) {
            Verdict::Acknowledged => {
                let by_id = |listed: Vec<crate::vercel::Listed>| {
                    let pairs = listed.into_iter().map(|one| (one.resource_id, one.name));
                    pairs.collect()
                };
                Ok((token, listed.map(by_id)))
            }
            verdict => Err(skip(verdict).unwrap_or(Skip::InstallationGone)),
        }
    }

    async fn token(&self, installation_id: &InstallationId) -> Result<AccessToken, Skip> {
        match self.tokens.get(installation_id).await {
            Ok(Some(token)) => Ok(token),
            Ok(None) | Err(TokenError::Refused { .. } | TokenError::Unusable) => Err(Skip::Token),
            Err(_) => Err(Skip::Unavailable),
        }
    }

    async fn look(&self, at: &Visit, record: &Record, fields: FieldSet) -> Looked {
        let Some(token) = at.token.as_ref().filter(|_| at.closed.is_none()) else {
            return Looked::Skipped(at.closed.unwrap_or(Skip::Token));
        };
        let name_alone = FieldSet::EMPTY.with(Field::Name);
        let listed = at.listed.as_ref();
        if let Some(name) = listed.and_then(|listed| listed.get(&record.key.resource_id))
            && fields == name_alone
        {
            let values = name.iter().map(|name| (Field::Name, Json::from_text(name)));
            let observed = Observed {
                values: values.collect(),
                billing_plan_id: None,
            };
            return Looked::Compared(differences(record, fields, &observed));
        }
        // What the list does not have is asked for all the same: it may have been cut.
        let (answer, observed) = self.marketplace.observe(token, &record.key).await;
        match (classify(&answer, self.clock.now()), observed) {
            (Verdict::Acknowledged, Some(observed)) => {
                Looked::Compared(differences(record, fields, &observed))
            }
            (Verdict::Acknowledged, None) => Looked::Skipped(Skip::Unavailable),
            (verdict, _) => skip(verdict).map_or(Looked::Missing, Looked::Skipped),
        }
    }

    /// Takes note of what the answers say of the installation and of the API.
    fn note(&self, at: &mut Visit, failures: &mut u32, looked: &[Looked]) {
        if at.closed.is_some() {
            return;
        }
        for one in looked {
            match one {
                Looked::Skipped(Skip::Unavailable) => *failures += 1,
                Looked::Skipped(skip @ (Skip::RateLimited | Skip::Token)) => {
                    at.closed = Some(*skip);
                }
                Looked::Skipped(_) => {}
                Looked::Compared(_) | Looked::Missing => *failures = 0,
            }
        }
        if *failures >= FAILURES_MAX {
            at.closed = Some(Skip::Unavailable);
        }
    }

    /// Tells what was found of resources that are still as they were when Vercel was asked.
    async fn conclude(
        &self,
        records: &[&Record],
        looked: Vec<Looked>,
        report: &mut DriftReport,
        tell: &mut DriftListener<'_>,
    ) -> Result<(), StoreError> {
        let keys: Vec<ResourceKey> = records.iter().map(|record| record.key.clone()).collect();
        let now = self.store.records(&keys).await?;
        let mut drifted = Vec::new();
        for ((record, looked), now) in records.iter().zip(looked).zip(&now) {
            let moved = now.entry.is_some() || now.acknowledged != record.acknowledged;
            match looked {
                Looked::Skipped(skip) => *report.skipped.entry(skip).or_default() += 1,
                _ if moved => *report.skipped.entry(Skip::UnderWay).or_default() += 1,
                Looked::Missing => {
                    report.compared += 1;
                    report.missing += 1;
                    let key = record.key.clone();
                    tell(DriftEvent::Found(&Finding::Missing { key }));
                }
                Looked::Compared(differences) => {
                    report.compared += 1;
                    let fields = found(record, differences, report, tell);
                    if !fields.is_empty() {
                        report.drifted += 1;
                        drifted.push(Drifted {
                            key: record.key.clone(),
                            fields,
                            acknowledged_at: record.acknowledged_at,
                        });
                    }
                }
            }
        }
        let order = &self.settings.order;
        if order.fix && !drifted.is_empty() {
            let now = self.clock.now();
            let marked = self
                .store
                .mark_drifted(&drifted, order.by.as_ref(), now)
                .await?;
            report.fixed += marked;
        }
        Ok(())
    }
}

/// Tells the differences of one resource; returns their fields.
fn found(
    record: &Record,
    differences: Vec<Difference>,
    report: &mut DriftReport,
    tell: &mut DriftListener<'_>,
) -> FieldSet {
    let mut fields = FieldSet::EMPTY;
    for Difference {
        field,
        acknowledged,
        shown,
    } in differences
    {
        fields = fields.with(field);
        *report.by_field.entry(field).or_default() += 1;
        let key = record.key.clone();
        tell(DriftEvent::Found(&Finding::Differs {
            key,
            field,
            acknowledged,
            shown,
        }));
    }
    fields
}

/// Why an answer leaves a resource uncompared; `None`: Vercel does not know what was asked for.
const fn skip(verdict: Verdict) -> Option<Skip> {
    match verdict {
        Verdict::Missing => None,
        Verdict::TokenRefused => Some(Skip::Token),
        Verdict::RateLimited { .. } => Some(Skip::RateLimited),
        _ => Some(Skip::Unavailable),
    }
}

fn differences(record: &Record, fields: FieldSet, observed: &Observed) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (field, acknowledged) in &record.acknowledged.values {
        if !fields.contains(*field) {
            continue;
        }
        let (agrees, acknowledged, shown) = if *field == Field::BillingPlan {
            let Some(id) = acknowledged
                .to_value()
                .get("id")
                .and_then(|id| id.as_str().map(str::to_owned))
            else {
                continue;
            };
            let shown = observed.billing_plan_id.clone();
            (shown.as_ref().is_none_or(|shown| *shown == id), id, shown)
        } else {
            let shown = observed
                .values
                .get(field)
                .map(|shown| shown.as_str().to_owned());
            (
                observed.shows(*field, acknowledged),
                acknowledged.as_str().to_owned(),
                shown,
            )
        };
        if !agrees {
            differences.push(Difference {
                field: *field,
                acknowledged: cut(&acknowledged),
                shown: shown.as_deref().map(cut),
            });
        }
    }
    differences
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
