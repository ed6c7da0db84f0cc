//! The search: one device after the other for each request of each claim, back one step where it does not go on.
//!
//! Exhaustive but bounded ([`STEPS_MAX`]). Within a request devices are only tried in their order (what matters is
//! which ones, not in which order); across requests all orders are. The first solution counts.

use super::pools::{self, Pool, suffices};
use super::read::{Amounts, Claim, Class, Counters, Device, DeviceId, Exact, Place, Selectors};
use super::{Inventory, add_amounts, capacity, result, rules, sub_amounts};
use crate::model::{NodeSpec, covers};
use serde_json::Value;
use std::collections::BTreeMap;

/// Results of one claim: upstream's limit.
const RESULTS_MAX: usize = 32;
/// Devices tried for one pod on one node: a hundredth of a second or so. Upstream stops by the clock, after 10 s.
const STEPS_MAX: usize = 20_000;

/// Why the search ends.
enum Stop {
    /// The claim would have too many devices; another alternative may need less.
    TooMany,
    /// For good.
    Error(String),
}

type Found = Result<bool, Stop>;

/// A device by its place: pool, slice, device.
type At = (usize, usize, usize);
/// A way to fulfil a request: claim, request, way.
pub type Way = (usize, usize, usize);

/// What one way to fulfil a request comes to on this node.
struct Asked<'a> {
    exact: &'a Exact,
    class: &'a Class,
    /// Every device that suits, where all are asked for.
    all: Option<Vec<At>>,
    count: usize,
}

/// A device that was chosen.
#[derive(Clone, Debug)]
pub struct Pick {
    /// For this request of the claim, in this way.
    pub request: usize,
    pub way: usize,
    at: At,
    /// What of it, where others may have parts too.
    pub part: Option<Amounts>,
    /// Its counters count: it has no part that does already.
    counted: bool,
}

/// The search on one node.
pub struct Search<'a> {
    inventory: &'a Inventory,
    pub node: &'a NodeSpec,
    pools: Vec<Pool<'a>>,
    pub claims: &'a [&'a Claim],
    asked: BTreeMap<Way, Asked<'a>>,
    suits: BTreeMap<(Way, At), bool>,
    /// Devices chosen, by how many of which claim.
    taken: BTreeMap<(DeviceId, usize), usize>,
    parts: BTreeMap<DeviceId, Amounts>,
    /// What is left of each pool's counters.
    counters: BTreeMap<usize, Counters>,
    pub picks: Vec<Vec<Pick>>,
    steps: usize,
}

/// Finds devices for all claims on the node: an `AllocationResult` each; `None`: there are none.
///
/// # Errors
/// Something is wrong with a claim, a class, or a pool.
pub fn allocate(
    inventory: &Inventory,
    node: &NodeSpec,
    claims: &[&Claim],
) -> Result<Option<Vec<Value>>, String> {
    let mut search = Search {
        inventory,
        node,
        pools: pools::of_node(inventory, node),
        claims,
        asked: BTreeMap::new(),
        suits: BTreeMap::new(),
        taken: BTreeMap::new(),
        parts: BTreeMap::new(),
        counters: BTreeMap::new(),
        picks: vec![Vec::new(); claims.len()],
        steps: 0,
    };
    for claim in 0..claims.len() {
        search.prepare(claim)?;
    }
    match search.request(0, 0) {
        Ok(true) => Ok(Some((0..claims.len()).map(|c| result::allocation(&search, c)).collect())),
        Ok(false) | Err(Stop::TooMany) if search.pools.iter().any(|p| p.invalid) => {
            Err("invalid resource pools were encountered".into())
        }
        Ok(false) | Err(Stop::TooMany) => Ok(None),
        Err(Stop::Error(why)) => Err(why),
    }
}

/// How messages name a claim.
fn shown(claim: &Claim) -> String {
    format!("{}/{}", claim.id.0, claim.id.1)
}

fn name_of((driver, pool, device): &DeviceId) -> String {
    format!("{driver}/{pool}/{device}")
}

impl<'a> Search<'a> {
    fn device(&self, (pool, slice, device): At) -> (&Pool<'a>, &'a Device) {
        let pool = &self.pools[pool];
        (pool, &pool.slices[slice].devices[device])
    }

    /// The pool's place of a device and the device.
    pub fn chosen(&self, pick: &Pick) -> (DeviceId, &'a Device, &'a Place) {
        let (pool, device) = self.device(pick.at);
        let place = match &pool.slices[pick.at.1].place {
            Place::Each => &device.place,
            own => own,
        };
        (pool.device_id(device), device, place)
    }

    /// The class of a way.
    pub fn class(&self, way: Way) -> Option<&'a Class> {
        self.asked.get(&way).map(|a| a.class)
    }

    /// Checks a claim's requests and finds what "all" means.
    fn prepare(&mut self, c: usize) -> Result<(), String> {
        let claim = self.claims[c];
        let mut least = 0usize;
        for (r, request) in claim.requests.iter().enumerate() {
            let mut least_here = usize::MAX;
            for (w, exact) in request.ways.iter().enumerate() {
                let name = request.full_name(w);
                let class = self.inventory.classes.get(&exact.class).ok_or_else(|| {
                    let (claim, class) = (shown(claim), &exact.class);
                    format!("claim {claim}, request {name}: could not retrieve device class {class}")
                })?;
                let way = (c, r, w);
                self.asked.insert(way, Asked { exact, class, all: None, count: exact.count });
                let mode = exact.all.ok_or_else(|| {
                    format!("claim {}, request {name}: unsupported count mode", shown(claim))
                })?;
                if mode {
                    let all = self.all_of(way, &name)?;
                    self.asked.insert(way, Asked { exact, class, count: all.len(), all: Some(all) });
                }
                least_here = least_here.min(self.asked[&way].count);
            }
            least = least.saturating_add(least_here);
        }
        if least > RESULTS_MAX {
            return Err(format!(
                "claim {}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}",
                shown(claim)
            ));
        }
        Ok(())
    }

    fn places(&self, pool: usize) -> Vec<At> {
        let slices = self.pools[pool].slices.iter().enumerate();
        slices.flat_map(|(s, slice)| (0..slice.devices.len()).map(move |d| (pool, s, d))).collect()
    }

    fn all_of(&mut self, way: Way, name: &str) -> Result<Vec<At>, String> {
        let mut all = Vec::new();
        for p in 0..self.pools.len() {
            let pool = &self.pools[p];
            if !pool.is_usable() {
                let state = if pool.incomplete { "being updated" } else { "invalid" };
                let (claim, (driver, id)) = (shown(self.claims[way.0]), pool.id);
                return Err(format!(
                    "claim {claim}, request {name}: asks for all devices, but resource pool {driver}/{id} is currently {state}"
                ));
            }
            for at in self.places(p) {
                if self.suits(way, at)? && self.part(way, at).is_some() {
                    all.push(at);
                }
            }
        }
        Ok(all)
    }

    /// Do class and request choose the device, and is it on this node?
    fn suits(&mut self, way: Way, at: At) -> Result<bool, String> {
        if let Some(known) = self.suits.get(&(way, at)) {
            return Ok(*known);
        }
        let (pool, device) = self.device(at);
        let id = pool.device_id(device);
        let asked = &self.asked[&way];
        let here = match pool.slices[at.1].place {
            Place::Each => device.place.reaches(self.node),
            _ => true,
        };
        let suits = here
            && all_match(&asked.class.selectors, device, &id, || format!("class {}", asked.class.name))?
            && all_match(&asked.exact.selectors, device, &id, || {
                format!("claim {}", shown(self.claims[way.0]))
            })?;
        self.suits.insert((way, at), suits);
        Ok(suits)
    }

    /// The amounts that the request takes of the device; `None`: it has not so much left.
    fn part(&self, way: Way, at: At) -> Option<Amounts> {
        let (pool, device) = self.device(at);
        let id = pool.device_id(device);
        let mut used = self.inventory.used.parts.get(&id).map(|(_, all)| all.clone()).unwrap_or_default();
        add_amounts(&mut used, self.parts.get(&id).unwrap_or(&Amounts::new()));
        capacity::consumption(&pool.id.0, device, &self.asked[&way].exact.capacity, &used)
    }

    /// Goes on with a request of a claim.
    fn request(&mut self, c: usize, r: usize) -> Found {
        let Some(claim) = self.claims.get(c) else { return Ok(true) };
        let Some(request) = claim.requests.get(r) else {
            return match self.request(c + 1, 0) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        if !request.listed {
            return self.devices((c, r, 0), 0, (0, 0, 0));
        }
        let mut always_too_many = true;
        for way in 0..request.ways.len() {
            match self.devices((c, r, way), 0, (0, 0, 0)) {
                Err(Stop::TooMany) => {}
                Ok(true) => return Ok(true),
                Ok(false) => always_too_many = false,
                Err(error) => return Err(error),
            }
        }
        if always_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Goes on with the `n`th device of a request, looking from a place on.
    fn devices(&mut self, way: Way, n: usize, from: At) -> Found {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            let words = format!("filter operation aborted: more than {STEPS_MAX} devices tried");
            return Err(Stop::Error(words));
        }
        let (c, r, _) = way;
        let (count, all) = (self.asked[&way].count, self.asked[&way].all.clone());
        if all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        if n >= count {
            return self.request(c, r + 1);
        }
        if self.picks[c].len() + count - n > RESULTS_MAX {
            return Err(Stop::TooMany);
        }
        if let Some(all) = all {
            return self.try_device(way, n, all[n], true);
        }
        for p in from.0..self.pools.len() {
            if !self.pools[p].is_usable() {
                continue;
            }
            for at in self.places(p).into_iter().filter(|at| *at >= from) {
                if self.is_free(way, at)
                    && self.suits(way, at).map_err(Stop::Error)?
                    && self.try_device(way, n, at, false)?
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn try_device(&mut self, way: Way, n: usize, at: At, must: bool) -> Found {
        if !self.take(way, at, must).map_err(Stop::Error)? {
            return Ok(false);
        }
        let found = self.devices(way, n + 1, (at.0, at.1, at.2 + 1));
        if !matches!(found, Ok(true)) {
            self.give_back(way.0);
        }
        found
    }

    fn is_free(&self, way: Way, at: At) -> bool {
        let (pool, device) = self.device(at);
        let id = pool.device_id(device);
        let by_claim = |c: usize| self.taken.contains_key(&(id.clone(), c));
        match self.asked[&way].exact.admin {
            true => device.multiple || !by_claim(way.0),
            false => !self.inventory.used.whole.contains_key(&id) && !(0..self.claims.len()).any(by_claim),
        }
    }

    /// Chooses a device if it can be had; [`Search::give_back`] undoes it.
    fn take(&mut self, way: Way, at: At, must: bool) -> Result<bool, String> {
        let (c, r, w) = way;
        let (pool, device) = self.device(at);
        let id = pool.device_id(device);
        let exact = self.asked[&way].exact;
        let ruled = rules::taints(self.inventory.rules.values(), &id);
        let tainted = device.taints.iter().chain(ruled).any(|taint| {
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                && !exact.tolerations.iter().any(|t| covers(t, taint))
        });
        if tainted || !self.is_free(way, at) {
            return Ok(false);
        }
        let counted = !device.consumes.is_empty()
            && !(device.multiple
                && (self.inventory.used.parts.contains_key(&id) || self.parts.contains_key(&id)));
        if counted && !suffices(self.counters_left(at.0), &device.consumes) {
            return Ok(false);
        }
        if !self.constraints_allow(way, &id, device) {
            return match must {
                true => Err(format!(
                    "claim {}, request {}: cannot add device {} because a claim constraint would not be satisfied",
                    shown(self.claims[c]),
                    self.claims[c].requests[r].full_name(w),
                    name_of(&id)
                )),
                false => Ok(false),
            };
        }
        let Some(part) = self.part(way, at) else { return Ok(false) };
        let part = device.multiple.then_some(part);
        match &part {
            Some(part) => add_amounts(self.parts.entry(id).or_default(), part),
            None => *self.taken.entry((id, c)).or_default() += 1,
        }
        if counted {
            let left = self.counters.entry(at.0).or_default();
            sub_counters(left, device);
        }
        self.picks[c].push(Pick { request: r, way: w, at, part, counted });
        Ok(true)
    }

    fn give_back(&mut self, c: usize) {
        let Some(pick) = self.picks[c].pop() else { return };
        let (id, device, _) = self.chosen(&pick);
        if pick.counted {
            let left = self.counters.entry(pick.at.0).or_default();
            for (at, amount) in &device.consumes {
                if let Some(left) = left.get_mut(at) {
                    *left = left.add(*amount);
                }
            }
        }
        match &pick.part {
            Some(part) => {
                if let Some(all) = self.parts.get_mut(&id) {
                    sub_amounts(all, part);
                }
                if !self.picks.iter().flatten().any(|p| p.at == pick.at && p.part.is_some()) {
                    self.parts.remove(&id);
                }
            }
            None => {
                let left = self.taken.get_mut(&(id.clone(), c)).map(|n| {
                    *n -= 1;
                    *n
                });
                if left == Some(0) {
                    self.taken.remove(&(id, c));
                }
            }
        }
    }

    fn counters_left(&mut self, p: usize) -> &Counters {
        let (pool, used) = (&self.pools[p], &self.inventory.used);
        self.counters.entry(p).or_insert_with(|| pool.counters_left(|id| used.has(id)))
    }

    /// Do the claim's constraints hold with one device more?
    fn constraints_allow(&self, (c, r, w): Way, id: &DeviceId, device: &Device) -> bool {
        let claim = self.claims[c];
        claim.constraints.iter().filter(|k| k.covers(&claim.requests[r], w)).all(|k| {
            let Some(own) = device.attribute(&id.0, &k.attribute) else { return false };
            let among = self.picks[c].iter().filter(|p| k.covers(&claim.requests[p.request], p.way));
            let mut others = among.map(|p| {
                let (other, device, _) = self.chosen(p);
                device.attribute(&other.0, &k.attribute)
            });
            others.all(|other| (other == Some(own)) != k.distinct)
        })
    }
}

fn sub_counters(left: &mut Counters, device: &Device) {
    for (at, amount) in &device.consumes {
        if let Some(left) = left.get_mut(at) {
            *left = left.sub(*amount);
        }
    }
}

fn all_match(
    selectors: &Selectors,
    device: &Device,
    id: &DeviceId,
    whose: impl Fn() -> String,
) -> Result<bool, String> {
    for (i, selector) in selectors.iter().enumerate() {
        let selector =
            selector.as_ref().map_err(|e| format!("{}: selector #{i}: CEL compile error: {e}", whose()))?;
        let matches = device.value.as_ref().map_err(Clone::clone).and_then(|v| selector.matches(v));
        let failed =
            |e| format!("{}: selector #{i} on device {}: CEL runtime error: {e}", whose(), name_of(id));
        if !matches.map_err(failed)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The claim's requests that were fulfilled in these ways.
pub fn ways(picks: &[Pick]) -> BTreeMap<usize, usize> {
    picks.iter().map(|p| (p.request, p.way)).collect()
}
