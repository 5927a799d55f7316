//! One request of the API from its head to its end: judged, struck by a fault or carried out, recorded.
//!
//! Guarantees one journal entry per request, whatever happens to its connection.

use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Body, Cut};
use super::fault::Fault;
use super::flight::Flight;
use super::journal::{Outcome, ViolationKind};
use super::judge::{Command, judge};
use super::remote::{Record, Remote, random_token, wall_clock};
use super::route::Route;
use super::world::Absence;

/// The longest body read, in bytes.
pub(super) const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// Answers one request of the API, or closes its connection.
///
/// # Errors
/// The connection is to be closed, after some last bytes.
pub(super) async fn exchange(
    remote: Remote,
    stopped: CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, incoming) = request.into_parts();
    let route = Route::parse(head.method.as_str(), head.uri.path());
    let mut record = remote.begin(head.method.as_str(), head.uri.path(), &route);
    let mut flight = route
        .written()
        .map(|key| remote.airspace().take_off(key, record.entry().number));
    let body = match Limited::new(incoming, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(answer(
                Answer::error(413, "The body is too long"),
                record,
                flight,
            ));
        }
        // The client left in the middle of its body.
        Err(_) => return Err(Cut::silent()),
    };
    if let Some(flight) = &mut flight {
        for other in flight.overlaps(remote.settings().overlap_grace).await {
            let detail = format!("request {other} to the same resource was still under way");
            record.violation(ViolationKind::ConcurrentWrites, detail);
        }
    }
    let judged = judge(&remote, &route, &head.headers, &body, &mut record);
    let exchange = Exchange {
        installation: route.installation().map(str::to_owned),
        number: record.entry().number,
        remote,
        judged,
    };
    let fault = exchange
        .remote
        .choose_fault(record.entry(), route.written().is_some());
    if let Some(fault) = &fault {
        record.entry_mut().fault = (*fault != Fault::Pass).then(|| fault.name());
    }
    exchange
        .enact(fault.unwrap_or(Fault::Pass), record, flight, stopped)
        .await
}

/// A request that has been judged.
struct Exchange {
    remote: Remote,
    installation: Option<String>,
    number: u64,
    judged: Result<Command, Answer>,
}

impl Exchange {
    async fn enact(
        self,
        fault: Fault,
        mut record: Record,
        flight: Option<Flight>,
        stopped: CancellationToken,
    ) -> Result<Response<Body>, Cut> {
        let id = record.entry().vercel_id.clone();
        match fault {
            Fault::Pass => Ok(answer(self.carry_out(&mut record), record, flight)),
            Fault::Delay(span) => {
                self.remote.hold().wait(Some(span)).await;
                Ok(answer(self.carry_out(&mut record), record, flight))
            }
            Fault::Status {
                code,
                body,
                headers,
            } => {
                let mut plain = Answer::error(code, "A fault on command");
                plain.headers = headers;
                plain.body = body.or(plain.body);
                Ok(answer(plain, record, flight))
            }
            Fault::RateLimited { retry_after } => {
                let limited = Answer::rate_limited(retry_after, wall_clock());
                Ok(answer(limited, record, flight))
            }
            Fault::Conflict => {
                let conflict = Answer::error(409, "Another change is under way");
                Ok(answer(conflict, record, flight))
            }
            Fault::RejectField(field) => {
                let message = format!("Invalid request: `{field}` is rejected on command");
                Ok(answer(Answer::error(400, message), record, flight))
            }
            Fault::Redirect { code, location } => {
                let redirect = Answer::error(code, "Elsewhere").header("location", location);
                Ok(answer(redirect, record, flight))
            }
            Fault::DropBefore => Err(close(Cut::silent(), record, flight)),
            Fault::NotHttp => Err(close(Cut::not_http(), record, flight)),
            Fault::DropAfter => {
                self.carry_out(&mut record);
                Err(close(Cut::silent(), record, flight))
            }
            Fault::Hang => {
                self.remote.hold().wait(None).await;
                Err(close(Cut::silent(), record, flight))
            }
            Fault::ApplyLate(span) => {
                self.carry_out_later(span, stopped);
                Err(close(Cut::silent(), record, flight))
            }
            Fault::Truncated => {
                let answer = self.carry_out(&mut record);
                let status = answer.status;
                let cut = answer.truncated(&id);
                finish(record, Outcome::Answered(status), flight);
                Err(cut)
            }
            Fault::HugeBody { bytes } => {
                let answer = self.carry_out(&mut record);
                finish(record, Outcome::Answered(answer.status), flight);
                Ok(answer.into_huge_response(&id, bytes))
            }
            Fault::SlowBody(pause) => {
                let answer = self.carry_out(&mut record);
                record.finish(Outcome::Answered(answer.status));
                Ok(answer.into_slow_response(&id, &self.remote, pause, flight))
            }
        }
    }

    fn carry_out(&self, record: &mut Record) -> Answer {
        let (answer, applied) = self.perform();
        record.entry_mut().applied = applied;
        answer
    }

    fn carry_out_later(self, span: Duration, stopped: CancellationToken) {
        let mut hold = self.remote.hold();
        tokio::spawn(async move {
            tokio::select! {
                () = hold.wait(Some(span)) => {}
                () = stopped.cancelled() => return,
            }
            if let (_, true) = self.perform() {
                self.remote.applied_late(self.number);
            }
        });
    }

    /// Does what the request asks for, within the rate limit; says whether it wrote.
    fn perform(&self) -> (Answer, bool) {
        let now = wall_clock();
        let quota = self.installation.as_deref().and_then(|installation| {
            self.remote
                .with_world(|world| world.count_request(installation, now))
        });
        if let Some(quota) = quota
            && quota.exceeded
        {
            let left = quota.reset.duration_since(now).unwrap_or_default();
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let limited = Answer::error(429, "Too many requests").header("retry-after", seconds);
            return (limited.with_quota(Some(quota)), false);
        }
        let (answer, applied) = match &self.judged {
            Ok(command) => command.run(&self.remote, self.number, now),
            Err(refusal) => (refusal.clone(), false),
        };
        (answer.with_quota(quota), applied)
    }
}

impl Command {
    /// Runs the command on the world; says whether it wrote.
    fn run(&self, remote: &Remote, number: u64, now: SystemTime) -> (Answer, bool) {
        let request = Some(number);
        match self {
            Self::Update(key, update) => {
                match remote.with_world(|world| world.update(key, update, request, now)) {
                    Ok(body) => (Answer::new(200, body), true),
                    Err(absence) => (absent(absence), false),
                }
            }
            Self::Import(key, import) => {
                let body = remote.with_world(|world| world.import(key, import, request, now));
                (Answer::new(200, body), true)
            }
            Self::PutSecrets(key, secrets) => {
                match remote.with_world(|world| world.put_secrets(key, secrets, request, now)) {
                    Ok(()) => (Answer::new(201, json!({})), true),
                    Err(absence) => (absent(absence), false),
                }
            }
            Self::Delete(key) => {
                match remote.with_world(|world| world.remove(key, Absence::NotFound)) {
                    Ok(()) => (Answer::no_content(), true),
                    Err(absence) => (absent(absence), false),
                }
            }
            Self::Get(key) => match remote.with_world(|world| world.show(key)) {
                Ok(body) => (Answer::new(200, body), false),
                Err(absence) => (absent(absence), false),
            },
            Self::List(installation) => {
                let body = remote.with_world(|world| world.list(installation));
                (Answer::new(200, body), false)
            }
            Self::Grant { installation } => {
                let token = random_token();
                let lifetime = remote.with_world(|world| {
                    let (lifetime, expires) = world.token_expiry(now);
                    world
                        .tokens_mut()
                        .grant(installation, &token, Some(expires));
                    lifetime
                });
                let body = json!({
                    "access_token": token.expose_secret(),
                    "token_type": "Bearer",
                    "expires_in": lifetime.as_secs(),
                });
                (Answer::new(200, body), false)
            }
        }
    }
}

fn absent(absence: Absence) -> Answer {
    Answer::error(absence.status(), "The resource is not there")
}

fn answer(answer: Answer, record: Record, flight: Option<Flight>) -> Response<Body> {
    let id = record.entry().vercel_id.clone();
    finish(record, Outcome::Answered(answer.status), flight);
    answer.into_response(&id)
}

fn close(cut: Cut, record: Record, flight: Option<Flight>) -> Cut {
    finish(record, Outcome::Closed, flight);
    cut
}

fn finish(record: Record, outcome: Outcome, flight: Option<Flight>) {
    record.finish(outcome);
    if let Some(flight) = flight {
        flight.land();
    }
}
