//! What happens in the demo, chapter by chapter. Everything told with a number in it was counted.

use std::time::Duration;

use super::provider::Edit;
use super::stage::{Stage, provider_failed};
use crate::cli::fault::{Failure, code};
use crate::cli::text::{count, counted, seconds};
use crate::simulator::{Fault, Field, Matcher, RetryAfter, Simulator};

/// What the last page needs to know besides the journal.
#[derive(Debug, Default)]
pub(super) struct Plot {
    pub(super) crashes: u64,
    pub(super) revoked: u64,
    pub(super) refused: Duration,
}

/// Plays the whole story.
pub(super) async fn play(stage: &mut Stage<'_>) -> Result<Plot, Failure> {
    let mut plot = Plot::default();
    first_push(stage).await?;
    ordinary_day(stage).await?;
    bad_answers(stage).await?;
    lost_answers(stage).await?;
    outage(stage, &mut plot).await?;
    revoked_token(stage, &mut plot).await?;
    crash(stage, &mut plot).await?;
    rotation(stage).await?;
    Ok(plot)
}

async fn first_push(stage: &mut Stage<'_>) -> Result<(), Failure> {
    stage.teller.chapter("First push");
    let databases = stage.provider.databases().len() as u64;
    let secrets = stage
        .provider
        .fleet()
        .await
        .map_err(|error| provider_failed(&error))?;
    let secrets: usize = secrets
        .values()
        .map(|database| database.secrets.len())
        .sum();
    stage.teller.say(&format!(
        "{} with {}: Vercel knows none of them",
        counted(databases, "database"),
        counted(secrets as u64, "secret")
    ));
    stage.start_daemon()?;
    let took = stage.settle().await?;
    stage.until_acknowledged(databases).await?;
    let requests = stage.remote.requests().len() as u64;
    stage.teller.say(&format!(
        "agreed after {}, with {}",
        seconds(took),
        counted(requests, "request")
    ));
    stage.pause(800).await;
    Ok(())
}

async fn ordinary_day(stage: &mut Stage<'_>) -> Result<(), Failure> {
    stage.teller.chapter("An ordinary day");
    let before = (stage.provider.changes, stage.remote.requests().len());
    stage.forget();
    stage.heard.lag_ms_max = 0;
    let edits: [&[Edit]; 7] = [
        &[Edit::State("suspended")],
        &[Edit::Plan("pro")],
        &[Edit::Rename],
        &[Edit::Resize],
        &[Edit::Message(Some("Maintenance on Sunday, 06:00 UTC"))],
        &[Edit::Plan("scale"), Edit::Resize, Edit::Message(None)],
        &[Edit::State("ready")],
    ];
    for round in 0..28 {
        let index = stage.provider.below(stage.provider.databases().len());
        stage.edit(index, edits[round % edits.len()]).await?;
        stage.pause(60).await;
    }
    let installation = stage.provider.databases()[0].0.clone();
    let (_, id) = stage
        .provider
        .provision(&installation)
        .await
        .map_err(|error| provider_failed(&error))?;
    stage.teller.say(&format!(
        "plans, names, states change; {installation} gets a new database, {id}"
    ));
    stage.settle().await?;
    stage.pause(0).await;
    stage.teller.say(&format!(
        "{} of rows, {}; at most {} ms from noticing to acknowledgement",
        counted(stage.provider.changes - before.0, "change"),
        counted((stage.remote.requests().len() - before.1) as u64, "request"),
        count(stage.heard.lag_ms_max)
    ));
    Ok(())
}

async fn bad_answers(stage: &mut Stage<'_>) -> Result<(), Failure> {
    stage.teller.chapter("Vercel answers badly");
    let limited = stage.provider.databases()[0].0.clone();
    let remote = stage.remote.clone();
    let rate_limited = Fault::RateLimited {
        retry_after: RetryAfter::Seconds(1),
    };
    remote.fault_times(4, rate_limited, Matcher::installation(&limited));
    remote.fault_times(6, Fault::status(503), Matcher::patch());
    remote.fault_times(2, Fault::Conflict, Matcher::patch());
    stage.teller.say(&format!(
        "503 for six requests, 409 for two, 429 for {limited} alone"
    ));
    for index in 0..18 {
        stage.edit(index, &[Edit::Resize]).await?;
    }
    let others = stage.settle_besides(Some(&limited)).await?;
    let last = stage.settle().await?;
    stage.teller.say(&format!(
        "the others agreed after {}, {limited} {} later",
        seconds(others),
        seconds(last)
    ));
    // What did not strike must not strike later.
    stage.remote.clear_faults();
    stage.pause(500).await;
    Ok(())
}

async fn lost_answers(stage: &mut Stage<'_>) -> Result<(), Failure> {
    stage.teller.chapter("Answers that never come");
    let index = 20;
    let (installation, id) = stage.provider.databases()[index].clone();
    stage.edit(index, &[Edit::State("ready")]).await?;
    stage.settle().await?;
    let one = Matcher {
        method: Some("PATCH".to_owned()),
        ..Matcher::resource(&installation, &id)
    };
    stage.remote.fault_times(3, Fault::DropAfter, one);
    stage.edit(index, &[Edit::State("suspended")]).await?;
    stage
        .until_vercel("Vercel to apply a request without answering it", |remote| {
            let resource = remote.resource(&installation, &id);
            resource.is_some_and(|resource| {
                resource
                    .field(Field::Status)
                    .is_some_and(|status| status == "suspended")
            })
        })
        .await?;
    stage.edit(index, &[Edit::State("ready")]).await?;
    stage.teller.say(&format!(
        "{installation} / {id}: ready → suspended was applied, the answer lost; then back to ready"
    ));
    let took = stage.settle().await?;
    stage.teller.say(&format!(
        "ready was sent again, although it was the last that Vercel had acknowledged: agreed after {}",
        seconds(took)
    ));
    stage.remote.clear_faults();
    stage.pause(300).await;
    Ok(())
}

async fn outage(stage: &mut Stage<'_>, plot: &mut Plot) -> Result<(), Failure> {
    stage
        .teller
        .chapter("An outage: every connection is refused");
    stage.forget();
    let began = tokio::time::Instant::now();
    if let Some(simulator) = stage.simulator.take() {
        simulator.shutdown().await;
    }
    let before = stage.provider.changes;
    for round in 0..36 {
        // A few rows change again and again: only their last state has to be sent.
        let edit = if round % 2 == 0 {
            Edit::Plan("pro")
        } else {
            Edit::Plan("scale")
        };
        stage.edit(round % 12, &[edit, Edit::Resize]).await?;
        stage.pause(40).await;
    }
    stage.until_heard("vercel.outage_began").await?;
    stage.pause(700).await;
    plot.refused = began.elapsed();
    let requests = stage.remote.requests().len();
    let simulator = Simulator::serve(stage.remote.clone(), stage.address).await;
    stage.simulator = Some(simulator.map_err(|error| Failure::of(code::SIMULATOR, &error))?);
    let took = stage.settle().await?;
    stage.until_heard("vercel.outage_ended").await?;
    stage.teller.say(&format!(
        "{} while nothing could be sent; agreed {} after the end, with {}",
        counted(stage.provider.changes - before, "change"),
        seconds(took),
        counted((stage.remote.requests().len() - requests) as u64, "request")
    ));
    Ok(())
}

async fn revoked_token(stage: &mut Stage<'_>, plot: &mut Plot) -> Result<(), Failure> {
    stage
        .teller
        .chapter("A revoked token, a rejected plan, a row that cannot be used");
    stage.forget();
    let (revoked, _) = stage.provider.databases()[30].clone();
    stage.remote.revoke_tokens(&revoked);
    plot.revoked += 1;
    stage.edit(30, &[Edit::Rename]).await?;
    stage.until_heard("installation.paused").await?;

    let rejecting = 8;
    let (installation, id) = stage.provider.databases()[rejecting].clone();
    stage.remote.fault_always(
        Fault::RejectField(Field::BillingPlan),
        Matcher::resource(&installation, &id),
    );
    stage
        .edit(rejecting, &[Edit::Plan("legacy"), Edit::Rotate("API_KEY")])
        .await?;
    stage.edit(16, &[Edit::State("sleeping")]).await?;
    stage.until_heard("delivery.dead").await?;
    let fleet = stage
        .provider
        .fleet()
        .await
        .map_err(|error| provider_failed(&error))?;
    let wanted = fleet
        .get(&(installation.clone(), id.clone()))
        .and_then(|database| database.secrets.get("API_KEY"));
    stage
        .until_vercel("the rotated secret to arrive", |remote| {
            let resource = remote.resource(&installation, &id);
            resource
                .is_some_and(|resource| resource.secret("API_KEY") == wanted.map(String::as_str))
        })
        .await?;
    stage
        .teller
        .say("the plan was rejected, the secret rotated with it arrived all the same");
    stage.until_heard("row.quarantined").await?;

    stage.remote.clear_faults();
    let token = stage
        .provider
        .renew_token(&revoked)
        .await
        .map_err(|error| provider_failed(&error))?;
    stage.remote.rotate_token(&revoked, &token);
    stage.edit(rejecting, &[Edit::Plan("pro")]).await?;
    stage.edit(16, &[Edit::State("ready")]).await?;
    stage
        .teller
        .say("the provider stores a new token, another plan and a state that exists");
    stage.until_heard("installation.resumed").await?;
    let took = stage.settle().await?;
    stage.teller.say(&format!(
        "agreed {} later, without anybody touching the daemon",
        seconds(took)
    ));
    Ok(())
}

async fn crash(stage: &mut Stage<'_>, plot: &mut Plot) -> Result<(), Failure> {
    /// Requests that are on their way when it happens.
    const CAUGHT: u32 = 3;
    stage.teller.chapter("The daemon crashes");
    stage
        .remote
        .fault_times(CAUGHT, Fault::Hang, Matcher::patch());
    for index in [2, 11, 19, 27, 36] {
        stage
            .edit(index, &[Edit::Resize, Edit::Rotate("DATABASE_URL")])
            .await?;
    }
    stage
        .until_vercel("requests under way", |remote| {
            remote.held() >= CAUGHT as usize
        })
        .await?;
    if let Some(daemon) = stage.daemon.take() {
        daemon.crash().await;
    }
    plot.crashes += 1;
    stage.teller.say(&format!(
        "killed with {} on the way, their outcome unknown",
        counted(CAUGHT.into(), "request")
    ));
    stage.remote.release();
    stage.edit(44, &[Edit::State("suspended")]).await?;
    stage.pause(500).await;
    stage.start_daemon()?;
    let took = stage.settle().await?;
    stage.teller.say(&format!(
        "started again from its state: agreed after {}",
        seconds(took)
    ));
    Ok(())
}

async fn rotation(stage: &mut Stage<'_>) -> Result<(), Failure> {
    stage
        .teller
        .chapter("A customer's secrets leak: all of them are rotated");
    let leaked = stage.provider.databases()[40].0.clone();
    let all: Vec<usize> = (0..stage.provider.databases().len())
        .filter(|index| stage.provider.databases()[*index].0 == leaked)
        .collect();
    let before = (stage.provider.rotations, stage.remote.requests().len());
    for index in &all {
        stage
            .edit(
                *index,
                &[Edit::Rotate("API_KEY"), Edit::Rotate("DATABASE_URL")],
            )
            .await?;
    }
    let took = stage.settle().await?;
    let name = stage.name(all[0]);
    stage.teller.say(&format!(
        "{} of {leaked} ({name} first): acknowledged after {}, in {}",
        counted(stage.provider.rotations - before.0, "secret"),
        seconds(took),
        counted((stage.remote.requests().len() - before.1) as u64, "request")
    ));
    Ok(())
}
