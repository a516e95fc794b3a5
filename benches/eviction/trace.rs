//! Synthetic traces with the shape of real registries.
//!
//! The shape follows Anwar et al., "Improving Docker Registry Design based on Production Workload
//! Analysis" (FAST '18), which looked at 75 days of seven registries: nearly all requests are pulls;
//! about 65 % of the layers are smaller than 1 MB and about 80 % smaller than 10 MB, with a tail of
//! gigabytes; a few layers get a large share of the requests; a layer that the client holds is not
//! asked for again while its manifest is; load follows the day and the week. What the paper does not
//! give (how images share layers and age, how runners and scanners behave) is modelled from how the
//! tools work, and is a parameter of [`Site`].
//!
//! Nothing here draws requests from a distribution. A small world is simulated instead, and the
//! requests are what its clients then have to ask for:
//!
//! - *Bases*: images of their own that others are built upon; rebuilt every few weeks.
//! - *Repositories* with a popularity by Zipf's law; a part of them trade places every day (drift).
//!   A new version replaces the upper part of the stack of layers and keeps the lower.
//! - *Hosts* hold the images they pulled last and ask only for layers they lack. A new version is
//!   rolled out to a share of the hosts that run the repository; hosts also restart and are moved.
//! - *Runners* of a CI start empty, mostly. A job pulls a base, then the image that was just built,
//!   which is pulled a few times within the hour and never again.
//! - *Scanners* walk at night through images by no popularity at all, once each.
//!   How many is the parameter that matters most: with those of [`sites`] 55–75 % of the contents are
//!   asked for once, and the report says what is left of each policy's gain with a fifth of them.
//! - *Upstreams* differ in latency, speed, and in what a pull takes of a quota.

use std::collections::{BinaryHeap, HashMap, VecDeque};

use clawhub_edge::store::eviction::{Class, METADATA_BYTES};
use fastrand::Rng;

const DAY: u32 = 86_400;
const HOUR: u32 = 3_600;

/// A registry that is pulled from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upstream {
    /// Seconds to the first byte.
    pub(crate) latency: f64,
    /// Bytes per second.
    pub(crate) speed: f64,
    /// Seconds that a pull is worth where pulls are rationed. At 200 in six hours, one beyond the
    /// allowance waits for 108 seconds; here one in 54 is beyond it.
    pub(crate) quota: f64,
    /// How many of the repositories are there.
    pub(crate) share: f64,
}

/// What there is to know of a place where images are pulled.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) days: u32,
    pub(crate) bases: usize,
    pub(crate) repositories: usize,
    /// Exponent of Zipf's law over repositories.
    pub(crate) skew: f64,
    /// Share of the repositories that trade places in a day.
    pub(crate) drift: f64,
    /// Days between two versions: the repositories' own means lie evenly (in the logarithm) between.
    pub(crate) version_days: (f64, f64),
    pub(crate) hosts: usize,
    /// Images a host keeps.
    pub(crate) host_images: usize,
    /// Share of the hosts that run a repository of the first rank; less by rank.
    pub(crate) rollout: f64,
    /// Pulls per host and day beside the roll-outs: restarts, moves, experiments.
    pub(crate) host_pulls: f64,
    /// CI jobs a day, and how many of their runners start empty.
    pub(crate) jobs: f64,
    pub(crate) empty_runners: f64,
    /// Images a day that a scanner (or whoever tries something once) pulls.
    pub(crate) scanned: f64,
    /// Share of the layers that are models and toolkits: from 0.5 to 6 GB.
    pub(crate) huge: f64,
    pub(crate) upstreams: Vec<Upstream>,
}

/// The kinds of site.
pub(crate) fn sites() -> Vec<Site> {
    let hub = Upstream { latency: 0.25, speed: 40e6, quota: 2.0, share: 0.4 };
    let cloud = Upstream { latency: 0.08, speed: 100e6, quota: 0.0, share: 0.4 };
    let vendor = Upstream { latency: 0.5, speed: 12e6, quota: 0.0, share: 0.1 };
    let remote = Upstream { latency: 0.3, speed: 4e6, quota: 0.0, share: 0.1 };
    vec![
        Site {
            name: "datacentre",
            about: "production: many hosts, roll-outs, restarts; few one-off pulls",
            days: 30,
            bases: 24,
            repositories: 400,
            skew: 0.9,
            drift: 0.01,
            version_days: (2.0, 90.0),
            hosts: 200,
            host_images: 25,
            rollout: 0.25,
            host_pulls: 3.0,
            jobs: 40.0,
            empty_runners: 0.5,
            scanned: 500.0,
            huge: 0.002,
            upstreams: vec![hub, cloud, vendor, remote],
        },
        Site {
            name: "ci",
            about: "builds and tests: empty runners, images that live for an hour, nightly scans",
            days: 21,
            bases: 40,
            repositories: 900,
            skew: 0.8,
            drift: 0.02,
            version_days: (1.0, 40.0),
            hosts: 40,
            host_images: 20,
            rollout: 0.2,
            host_pulls: 2.0,
            jobs: 600.0,
            empty_runners: 0.8,
            scanned: 500.0,
            huge: 0.001,
            upstreams: vec![hub, cloud, vendor, remote],
        },
        Site {
            name: "developers",
            about: "an office: laptops with small caches, a long tail of things tried once",
            days: 45,
            bases: 40,
            repositories: 1_500,
            skew: 1.0,
            drift: 0.02,
            version_days: (5.0, 120.0),
            hosts: 80,
            host_images: 12,
            rollout: 0.05,
            host_pulls: 6.0,
            jobs: 60.0,
            empty_runners: 0.7,
            scanned: 250.0,
            huge: 0.003,
            upstreams: vec![Upstream { share: 0.6, ..hub }, Upstream { share: 0.2, ..cloud }, vendor, remote],
        },
        Site {
            name: "edge",
            about: "a plant behind a poor link: few hosts, large models, nightly updates",
            days: 90,
            bases: 10,
            repositories: 120,
            skew: 0.8,
            drift: 0.01,
            version_days: (8.0, 120.0),
            hosts: 25,
            host_images: 12,
            rollout: 0.3,
            host_pulls: 2.0,
            jobs: 2.0,
            empty_runners: 0.5,
            scanned: 30.0,
            huge: 0.02,
            upstreams: vec![
                Upstream { latency: 0.6, speed: 5e6, share: 0.4, ..hub },
                Upstream { latency: 0.6, speed: 5e6, share: 0.3, ..cloud },
                Upstream { latency: 0.9, speed: 2e6, ..vendor },
                Upstream { latency: 0.15, speed: 12e6, share: 0.2, ..remote },
            ],
        },
    ]
}

/// Something that is pulled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    pub(crate) key: u64,
    pub(crate) bytes: u64,
    /// Neither manifest nor config, however small.
    pub(crate) is_layer: bool,
    pub(crate) class: Class,
    /// Seconds of the upstream to fetch it.
    pub(crate) cost: f32,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) time: u32,
    /// Index into [`Trace::contents`].
    pub(crate) content: u32,
}

/// What was asked for, in order.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) contents: Vec<Content>,
    /// What a manifest needs: its config and layers, in the order of the contents; empty for others.
    pub(crate) needs: Vec<Vec<u32>>,
    pub(crate) requests: Vec<Request>,
}

impl Trace {
    /// The trace of a site and a seed.
    pub(crate) fn generate(site: &Site, seed: u64) -> Self {
        World::new(site, seed).run()
    }

    /// Bytes of everything that was asked for.
    pub(crate) fn footprint(&self) -> u64 {
        self.contents.iter().map(|content| content.bytes).sum()
    }
}

/// An image: what a client asks for, in order.
#[derive(Debug, Clone, Default)]
struct Image {
    manifest: u32,
    config: u32,
    layers: Vec<u32>,
}

#[derive(Debug)]
struct Repository {
    upstream: usize,
    base: usize,
    version_days: f64,
    current: Image,
    old: Vec<Image>,
}

#[derive(Debug, Default)]
struct Host {
    images: VecDeque<Image>,
    /// Layers and configs by the number of images that hold them.
    held: HashMap<u32, u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Day,
    BaseRelease(usize),
    Release(usize),
    HostPull {
        host: usize,
        repository: Option<usize>,
    },
    Job,
    Scan,
    /// A runner pulls an image of `fresh`.
    Fresh(usize),
}

struct World<'a> {
    site: &'a Site,
    rng: Rng,
    trace: Trace,
    bases: Vec<Repository>,
    repositories: Vec<Repository>,
    /// Cumulated popularity; repository by rank.
    popularity: Vec<f64>,
    ranks: Vec<usize>,
    hosts: Vec<Host>,
    fresh: Vec<Image>,
    events: BinaryHeap<std::cmp::Reverse<(u32, u64, Event)>>,
    sequence: u64,
}

impl<'a> World<'a> {
    fn new(site: &'a Site, seed: u64) -> Self {
        let mut world = Self {
            site,
            // The name keeps sites of one seed apart.
            rng: Rng::with_seed(
                site.name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())),
            ),
            trace: Trace { contents: Vec::new(), needs: Vec::new(), requests: Vec::new() },
            bases: Vec::new(),
            repositories: Vec::new(),
            popularity: Vec::new(),
            ranks: (0..site.repositories).collect(),
            hosts: (0..site.hosts).map(|_| Host::default()).collect(),
            fresh: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
        };
        world.build();
        world
    }

    fn build(&mut self) {
        for _ in 0..self.site.bases {
            let upstream = self.any_upstream();
            let layers = vec![self.base_layer(upstream)];
            let version_days = 10.0 + 20.0 * self.rng.f64();
            let current = self.image(upstream, layers);
            self.bases.push(Repository {
                upstream,
                base: usize::MAX,
                version_days,
                current,
                old: Vec::new(),
            });
        }
        let (from, to) = self.site.version_days;
        for _ in 0..self.site.repositories {
            // A few bases carry most images.
            let base = (self.site.bases as f64 * self.rng.f64().powi(2)) as usize;
            let upstream = self.any_upstream();
            let version_days = from * (to / from).powf(self.rng.f64());
            let mut repository =
                Repository { upstream, base, version_days, current: Image::default(), old: Vec::new() };
            self.renew(&mut repository, true);
            for _ in 0..3 {
                self.renew(&mut repository, false);
            }
            self.repositories.push(repository);
        }
        self.rng.shuffle(&mut self.ranks);
        let mut sum = 0.0;
        for rank in 0..self.site.repositories {
            sum += 1.0 / (rank as f64 + 1.0).powf(self.site.skew);
            self.popularity.push(sum);
        }
    }

    fn run(mut self) -> Trace {
        let end = self.site.days * DAY;
        self.schedule(0, Event::Day);
        for base in 0..self.bases.len() {
            let at = self.after(0, self.bases[base].version_days);
            self.schedule(at, Event::BaseRelease(base));
        }
        for repository in 0..self.repositories.len() {
            let at = self.after(0, self.repositories[repository].version_days);
            self.schedule(at, Event::Release(repository));
        }
        while let Some(std::cmp::Reverse((time, _, event))) = self.events.pop() {
            if time >= end {
                break;
            }
            self.step(time, event);
        }
        // Jobs of one event lie a few seconds apart, so neighbours may overlap.
        self.trace.requests.sort_by_key(|request| request.time);
        self.trace.only_what_was_asked_for()
    }

    fn step(&mut self, time: u32, event: Event) {
        match event {
            Event::Day => self.plan_day(time),
            Event::BaseRelease(at) => {
                let upstream = self.bases[at].upstream;
                let layers = vec![self.base_layer(upstream)];
                let image = self.image(upstream, layers);
                let base = &mut self.bases[at];
                base.old.push(std::mem::replace(&mut base.current, image));
                let next = self.after(time, self.bases[at].version_days);
                self.schedule(next, Event::BaseRelease(at));
            }
            Event::Release(at) => self.release(time, at),
            Event::HostPull { host, repository } => {
                let repository = repository.unwrap_or_else(|| self.popular());
                let image = self.version(repository);
                self.pull_on_host(time, host, &image);
            }
            Event::Job => self.job(time),
            Event::Scan => {
                let repository = self.rng.usize(..self.repositories.len());
                let image = if self.rng.f64() < 0.5 {
                    self.stranger(repository)
                } else {
                    let old = &self.repositories[repository].old;
                    old[self.rng.usize(..old.len())].clone()
                };
                self.pull_all(time, &image);
            }
            Event::Fresh(at) => {
                let image = self.fresh[at].clone();
                self.pull_all(time, &image);
            }
        }
    }

    /// Popularity drifts, and the day's pulls get their times.
    fn plan_day(&mut self, start: u32) {
        let traded = (self.site.drift * self.ranks.len() as f64).ceil() as usize;
        for _ in 0..traded {
            let (a, b) = (self.rng.usize(..self.ranks.len()), self.rng.usize(..self.ranks.len()));
            self.ranks.swap(a, b);
        }
        let weekend = start / DAY % 7 >= 5;
        let human = if weekend { 0.35 } else { 1.0 };
        for _ in 0..self.count(self.site.host_pulls * self.site.hosts as f64 * (0.5 + 0.5 * human)) {
            let (at, host) = (start + self.daytime(), self.rng.usize(..self.site.hosts));
            self.schedule(at, Event::HostPull { host, repository: None });
        }
        for _ in 0..self.count(self.site.jobs * human) {
            let at = start + self.daytime();
            self.schedule(at, Event::Job);
        }
        // Scanners run in one go, between one and five at night.
        for _ in 0..self.count(self.site.scanned) {
            let at = start + HOUR + self.rng.u32(..4 * HOUR);
            self.schedule(at, Event::Scan);
        }
        self.schedule(start + DAY, Event::Day);
    }

    /// A new version, rolled out within a few hours.
    fn release(&mut self, time: u32, at: usize) {
        let mut repository = std::mem::replace(
            &mut self.repositories[at],
            Repository {
                upstream: 0,
                base: 0,
                version_days: 0.0,
                current: Image::default(),
                old: Vec::new(),
            },
        );
        self.renew(&mut repository, false);
        let next = self.after(time, repository.version_days);
        self.repositories[at] = repository;
        self.schedule(next, Event::Release(at));
        let rank = self.ranks.iter().position(|ranked| *ranked == at).unwrap_or(0);
        let share = self.site.rollout / (1.0 + rank as f64 / 20.0);
        let spread = 600 + self.rng.u32(..4 * HOUR);
        for host in 0..self.site.hosts {
            if self.rng.f64() < share {
                let when = time + self.rng.u32(..spread);
                self.schedule(when, Event::HostPull { host, repository: Some(at) });
            }
        }
    }

    /// A CI job: what it builds upon, then the result, tested by a few more runners.
    fn job(&mut self, time: u32) {
        let at = self.popular();
        let (upstream, base) = (self.repositories[at].upstream, self.repositories[at].base);
        let tool = self.popular();
        let bases = [self.bases[base].current.clone(), self.repositories[tool].current.clone()];
        if self.rng.f64() < self.site.empty_runners {
            for image in &bases {
                self.pull_all(time, image);
            }
        } else {
            for image in &bases {
                let host = self.rng.usize(..self.site.hosts);
                self.pull_on_host(time, host, image);
            }
        }
        let mut layers = self.repositories[at].current.layers.clone();
        let kept = layers.len().saturating_sub(1 + self.rng.usize(..3)).max(1);
        layers.truncate(kept);
        for _ in 0..=self.rng.usize(..2) {
            let layer = self.layer(upstream);
            layers.push(layer);
        }
        let image = self.image(upstream, layers);
        self.fresh.push(image);
        for _ in 0..=self.rng.usize(..3) {
            let when = time + 120 + self.rng.u32(..HOUR);
            self.schedule(when, Event::Fresh(self.fresh.len() - 1));
        }
    }

    /// The version that is pulled: mostly the newest, sometimes one that somebody pinned.
    fn version(&mut self, repository: usize) -> Image {
        let pinned = self.rng.f64() < 0.15;
        let repository = &self.repositories[repository];
        if pinned { repository.old[repository.old.len() - 1].clone() } else { repository.current.clone() }
    }

    /// An image that nobody here has seen: another one on the base of a repository.
    fn stranger(&mut self, repository: usize) -> Image {
        let (upstream, base) = (self.repositories[repository].upstream, self.repositories[repository].base);
        let mut layers = self.bases[base].current.layers.clone();
        for _ in 0..2 + self.rng.usize(..6) {
            let layer = self.layer(upstream);
            layers.push(layer);
        }
        self.image(upstream, layers)
    }

    /// The next version of a repository.
    fn renew(&mut self, repository: &mut Repository, first: bool) {
        let base = self.bases[repository.base].current.layers.clone();
        let own = if first { 3 + self.rng.usize(..8) } else { repository.current.layers.len() - base.len() };
        let mut layers = base.clone();
        // Layers above a changed one change too; most releases change the last one or two. A base
        // that was rebuilt changes everything.
        let rebased = repository.current.layers.first() != base.first();
        let changed = if first || rebased { own } else { (1 + self.geometric(0.5)).min(own) };
        if changed < own {
            layers.extend(&repository.current.layers[base.len()..base.len() + own - changed]);
        }
        for _ in 0..changed {
            let layer = self.layer(repository.upstream);
            layers.push(layer);
        }
        let image = self.image(repository.upstream, layers);
        let before = std::mem::replace(&mut repository.current, image);
        if !first {
            repository.old.push(before);
        }
    }

    fn pull_on_host(&mut self, time: u32, host: usize, image: &Image) {
        let mut asked = vec![image.manifest];
        let host = &mut self.hosts[host];
        for content in std::iter::once(&image.config).chain(&image.layers) {
            let held = host.held.entry(*content).or_default();
            if *held == 0 {
                asked.push(*content);
            }
            *held += 1;
        }
        host.images.push_back(image.clone());
        if host.images.len() > self.site.host_images {
            let gone = host.images.pop_front().unwrap_or_default();
            for content in std::iter::once(gone.config).chain(gone.layers) {
                if let Some(held) = host.held.get_mut(&content) {
                    *held -= 1;
                    if *held == 0 {
                        host.held.remove(&content);
                    }
                }
            }
        }
        self.ask(time, &asked);
    }

    fn pull_all(&mut self, time: u32, image: &Image) {
        let mut asked = vec![image.manifest, image.config];
        asked.extend(&image.layers);
        self.ask(time, &asked);
    }

    /// Three at a time, as containerd and Docker do.
    fn ask(&mut self, time: u32, contents: &[u32]) {
        for (at, content) in contents.iter().enumerate() {
            self.trace.requests.push(Request { time: time + at as u32 / 3, content: *content });
        }
    }

    fn image(&mut self, upstream: usize, layers: Vec<u32>) -> Image {
        let config = self.content(upstream, 1_500 + 400 * layers.len() as u64, false);
        let manifest = self.content(upstream, 500 + 150 * layers.len() as u64, false);
        self.trace.contents[manifest as usize].cost += self.site.upstreams[upstream].quota as f32;
        self.trace.needs[manifest as usize] = std::iter::once(config).chain(layers.iter().copied()).collect();
        Image { manifest, config, layers }
    }

    fn base_layer(&mut self, upstream: usize) -> u32 {
        let bytes = self.between(3e6, 1.2e8);
        self.content(upstream, bytes, true)
    }

    fn layer(&mut self, upstream: usize) -> u32 {
        let chance = self.rng.f64();
        let bytes = if chance < self.site.huge {
            self.between(5e8, 6e9)
        } else if chance < 0.65 {
            self.between(1e2, 1e6)
        } else if chance < 0.8 {
            self.between(1e6, 1e7)
        } else if chance < 0.98 {
            self.between(1e7, 2e8)
        } else {
            self.between(2e8, 8e8)
        };
        self.content(upstream, bytes, true)
    }

    fn content(&mut self, upstream: usize, bytes: u64, is_layer: bool) -> u32 {
        let Upstream { latency, speed, .. } = self.site.upstreams[upstream];
        let class = if bytes <= METADATA_BYTES { Class::Metadata } else { Class::Layer };
        let cost = (latency + bytes as f64 / speed) as f32;
        self.trace.contents.push(Content { key: self.rng.u64(..), bytes, is_layer, class, cost });
        self.trace.needs.push(Vec::new());
        self.trace.contents.len() as u32 - 1
    }

    fn any_upstream(&mut self) -> usize {
        let mut left = self.rng.f64();
        let shares = self.site.upstreams.iter().map(|upstream| upstream.share);
        shares
            .enumerate()
            .find_map(|(at, share)| {
                left -= share;
                (left < 0.0).then_some(at)
            })
            .unwrap_or(0)
    }

    fn popular(&mut self) -> usize {
        let sum = self.popularity[self.popularity.len() - 1];
        let at = sum * self.rng.f64();
        self.ranks[self.popularity.partition_point(|before| *before < at)]
    }

    /// Evenly in the logarithm.
    fn between(&mut self, from: f64, to: f64) -> u64 {
        (from * (to / from).powf(self.rng.f64())) as u64
    }

    /// A whole number whose mean is `mean`.
    fn count(&mut self, mean: f64) -> usize {
        (mean + self.rng.f64()) as usize
    }

    fn geometric(&mut self, again: f64) -> usize {
        let mut count = 0;
        while self.rng.f64() < again {
            count += 1;
        }
        count
    }

    /// A moment in a day: most of them between eight and six.
    fn daytime(&mut self) -> u32 {
        if self.rng.f64() < 0.8 {
            8 * HOUR + (f64::from(10 * HOUR) * (self.rng.f64() + self.rng.f64()) / 2.0) as u32
        } else {
            self.rng.u32(..DAY)
        }
    }

    /// An exponential time of this mean later.
    fn after(&mut self, time: u32, mean_days: f64) -> u32 {
        let days = -mean_days * (1.0 - self.rng.f64()).ln();
        time.saturating_add((days * f64::from(DAY)) as u32)
    }

    fn schedule(&mut self, time: u32, event: Event) {
        self.sequence += 1;
        self.events.push(std::cmp::Reverse((time, self.sequence, event)));
    }
}

impl Trace {
    /// Drops contents that nobody asked for, so that the footprint counts what was.
    fn only_what_was_asked_for(self) -> Self {
        let mut number = vec![u32::MAX; self.contents.len()];
        let (mut contents, mut old) = (Vec::new(), Vec::new());
        let mut requests = self.requests;
        for request in &mut requests {
            let at = request.content as usize;
            if number[at] == u32::MAX {
                number[at] = contents.len() as u32;
                contents.push(self.contents[at]);
                old.push(at);
            }
            request.content = number[at];
        }
        let needs = old.iter().map(|at| {
            self.needs[*at]
                .iter()
                .map(|need| number[*need as usize])
                .filter(|need| *need != u32::MAX)
                .collect()
        });
        Self { needs: needs.collect(), contents, requests }
    }
}
