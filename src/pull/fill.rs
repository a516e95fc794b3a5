//! The task behind a flight: upstream → hash → file → followers.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::config::OnAbandon;
use super::flight::{Flight, Phase};
use super::{Error, Puller};
use crate::oci::{ByteRange, Digest};
use crate::routing::Route;
use crate::store::{Blob, Partial};
use crate::upstream::{Download, Purpose};

/// How long less than a block may wait for more before it is written. Long enough to gather a
/// block at line rate, short enough not to be felt.
const LINGER: Duration = Duration::from_millis(4);

/// Runs one flight to its end and tells its followers.
pub(super) async fn run(puller: Puller, flight: Arc<Flight>, route: Route, digest: Digest) {
    let landing = Landing { puller: &puller, flight: &flight, outcome: None };
    puller.metrics().flights.inc();
    let outcome = fill(&puller, &flight, &route, &digest).await;
    puller.metrics().count_fill(&outcome);
    match &outcome {
        Ok(blob) => {
            tracing::debug!(%digest, upstream = %route.upstream.name, size_bytes = blob.size(), "sealed");
        }
        Err(Error::Unknown(_) | Error::Abandoned) => {
            tracing::debug!(%digest, upstream = %route.upstream.name, "fill ended without a blob");
        }
        Err(error) => tracing::warn!(
            %digest,
            upstream = %route.upstream.name,
            repository = %route.repository,
            %error,
            "fill failed"
        ),
    }
    landing.land(outcome);
}

/// Ends the flight exactly once, also when the fill panics: a digest must not stay in the map
/// without a task behind it.
struct Landing<'a> {
    puller: &'a Puller,
    flight: &'a Arc<Flight>,
    outcome: Option<Result<Arc<Blob>, Error>>,
}

impl Landing<'_> {
    fn land(mut self, outcome: Result<Arc<Blob>, Error>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.puller.metrics().flights.dec();
        let phase = match self.outcome.take().unwrap_or(Err(Error::Internal)) {
            Ok(blob) => Phase::Sealed(blob),
            Err(error) => Phase::Failed(error),
        };
        self.puller.flights().end(self.flight);
        self.flight.publish(|progress| progress.phase = phase);
    }
}

async fn fill(
    puller: &Puller,
    flight: &Arc<Flight>,
    route: &Route,
    digest: &Digest,
) -> Result<Arc<Blob>, Error> {
    let _turn = turn(puller, flight, route).await?;
    if puller.store().contains(digest) {
        // An earlier flight landed between this one's look at the store and its start.
        puller.prove_blob(route, digest, Purpose::Pull).await?;
        if let Some(blob) = puller.store().blob(digest).await {
            return Ok(blob);
        }
    }
    let mut partial = puller.store().partial(*digest, route.upstream.name.as_str()).await?;
    if partial.size() == Some(partial.position()) {
        // Everything had arrived when the last process died; the upstream is asked for the right only.
        puller.prove_blob(route, digest, Purpose::Pull).await?;
        return Ok(partial.seal().await?);
    }
    let outcome = match open(puller, route, digest, &mut partial).await {
        Ok(mut download) => {
            puller.set_visible(route, digest);
            transfer(puller, flight, &mut partial, &mut download).await
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => Ok(partial.seal().await?),
        Err(error) if error.spoils_partial() => {
            partial.discard().await;
            Err(error)
        }
        Err(error) => {
            partial.park().await;
            Err(error)
        }
    }
}

/// Waits for a turn, for as long as somebody follows.
async fn turn(puller: &Puller, flight: &Flight, route: &Route) -> Result<OwnedSemaphorePermit, Error> {
    let mut turn = pin!(puller.fill_turn(&route.upstream.name));
    loop {
        tokio::select! {
            turn = turn.as_mut() => return turn,
            () = flight.deserted(puller.fill_config().abandon_grace) => {
                if puller.flights().park_if_abandoned(flight) {
                    return Err(Error::Abandoned);
                }
            }
            () = puller.aborting() => return Err(Error::Abandoned),
        }
    }
}

/// Asks the upstream from where the partial ends; from the front, if what it says now contradicts
/// what it has sent before.
async fn open(
    puller: &Puller,
    route: &Route,
    digest: &Digest,
    partial: &mut Partial,
) -> Result<Download, Error> {
    let download = |from| puller.client().download(route, digest, ByteRange::new(from, u64::MAX));
    let mut opened = download(partial.position()).await.map_err(Error::from);
    let contradicts = match &opened {
        Ok(download) => partial.size().is_some_and(|known| download.size().is_some_and(|said| said != known)),
        Err(error) => error.spoils_partial(),
    };
    if partial.position() > 0 && contradicts {
        tracing::warn!(%digest, from = partial.position(), "a partial blob cannot be resumed and starts over");
        partial.restart().await?;
        opened = download(0).await.map_err(Error::from);
    }
    let opened = opened?;
    let largest = puller.fill_config().max_blob_size.as_u64();
    if let Some(size) = opened.size() {
        if size > largest {
            return Err(Error::TooLarge(largest));
        }
        partial.expect_size(size);
    }
    Ok(opened)
}

/// Moves the bytes. At the end all of them are in the file.
async fn transfer(
    puller: &Puller,
    flight: &Flight,
    partial: &mut Partial,
    download: &mut Download,
) -> Result<(), Error> {
    let config = puller.fill_config();
    let largest = partial.size().unwrap_or(config.max_blob_size.as_u64());
    flight.publish(|progress| {
        progress.phase = Phase::Filling(partial.file());
        progress.size = partial.size();
        progress.arrived = partial.arrived().clone();
    });
    let start = partial.position();
    // What has come and did not fit into the gathering block.
    let mut frame = Bytes::new();
    let mut ended = false;
    let mut watched = true;
    let mut draining = false;
    let mut deserted = pin!(flight.deserted(config.abandon_grace));
    let mut linger = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        if !frame.is_empty() {
            partial.push(&mut frame);
        }
        // The first bytes go out at once; after that a block gathers while the last one is written.
        let is_first = partial.position() - partial.gathered() as u64 == start;
        if !partial.is_writing() && (ended || is_first || !partial.has_room() || linger.is_elapsed()) {
            partial.start_write();
        }
        if ended && frame.is_empty() && !partial.is_writing() && partial.gathered() == 0 {
            return Ok(());
        }
        let lingers = partial.gathered() > 0 && !partial.is_writing();
        let wants_more = !ended && frame.is_empty() && partial.has_room();
        tokio::select! {
            written = partial.written(), if partial.is_writing() => {
                written?;
                flight.publish(|progress| progress.arrived.clone_from(partial.arrived()));
                linger.as_mut().reset(Instant::now() + LINGER);
            }
            next = download.next(), if wants_more => match next? {
                Some(next) => {
                    if partial.position() + next.len() as u64 > largest {
                        return Err(Error::TooLarge(largest));
                    }
                    puller.metrics().filled_bytes.inc_by(next.len() as u64);
                    if partial.gathered() == 0 && !partial.is_writing() {
                        linger.as_mut().reset(Instant::now() + LINGER);
                    }
                    frame = next;
                }
                None => ended = true,
            },
            () = linger.as_mut(), if lingers => {}
            () = deserted.as_mut(), if watched => {
                if !draining && is_worth_finishing(puller, partial) {
                    watched = false;
                } else if puller.flights().park_if_abandoned(flight) {
                    return Err(Error::Abandoned);
                } else {
                    deserted.set(flight.deserted(config.abandon_grace));
                }
            }
            // A stop waits for clients, not for bytes that nobody waits for: those are resumed.
            () = puller.draining(), if !draining => {
                (draining, watched) = (true, true);
                deserted.set(flight.deserted(Duration::ZERO));
            }
            () = puller.aborting() => return Err(Error::Abandoned),
        }
    }
}

fn is_worth_finishing(puller: &Puller, partial: &Partial) -> bool {
    let config = puller.fill_config();
    // Without a known size no share can be told; what nobody waits for is then not finished.
    let enough = partial.size().is_some_and(|size| partial.position() >= config.finish_after.of(size));
    config.on_abandon == OnAbandon::Finish && enough
}
