//! The device decoder's step made of kernels: written against [`Machine`], so that tests run it on the CPU, over the same
//! sources that a GPU runs.
//!
//! Everything that a step computes in is allocated beforehand, and what differs from step to step lies in one list of
//! numbers that is copied to the device: so a step can be captured once and replayed.

use super::Draws;
use super::plan::Plan;
use crate::block::{Layer, Projection};
use crate::cache::LANES;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::Adapter;
use crate::ops::cuda::decode::{self, Cached, Place};
use crate::ops::cuda::decode_attention::{self, Reads};
use crate::ops::cuda::{Machine, Product, Target, View, rms_norm, sample};
use crate::ops::sample::Distribution;
use crate::qwen2::Qwen2;
use candle_core::{DType, Tensor};
use std::ops::Range;

/// A machine whose memory tensors are in, and that the host can write to and read from.
pub(crate) trait Ends: Machine {
    /// What keeps a tensor's memory readable.
    type Held<'a>;

    /// Holds a contiguous tensor's memory.
    fn hold<'a>(&self, tensor: &'a Tensor) -> Result<Self::Held<'a>>;

    /// The elements of a held tensor.
    fn view<'a>(&self, held: &'a Self::Held<'_>) -> Result<View<'a, Self::Memory>>;

    /// Copies numbers to the beginning of `to`.
    fn upload(&self, values: &[u32], to: &mut Self::Memory) -> Result<()>;

    /// Waits for everything before, and copies the first `len` numbers of `from`.
    fn download(&self, from: &Self::Memory, len: usize) -> Result<Vec<u32>>;
}

/// Where the numbers of a step are in the list that goes to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Rows of the forward pass.
    pub tokens: usize,
    /// Rows of the tables.
    spans: usize,
    /// Rows of logits.
    wanted: usize,
    draws: usize,
    /// Blocks of a row of the tables.
    width: usize,
}

impl Layout {
    /// The layout of a plan whose rows draw so many tokens; `rows`, where it is padded to so many that feed one token each.
    pub fn new(plan: &Plan, draws: usize, rows: Option<usize>) -> Self {
        match rows {
            Some(rows) => Self { tokens: rows, spans: rows, wanted: rows, draws: rows, width: plan.width },
            None => Self {
                tokens: plan.tokens.len(),
                spans: plan.spans.len(),
                wanted: plan.wanted.len(),
                draws,
                width: plan.width,
            },
        }
    }

    /// Blocks of a row of the tables.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens, positions, slots and owners.
    fn by_token(&self, which: usize) -> Range<usize> {
        which * self.tokens..(which + 1) * self.tokens
    }

    fn wanted(&self) -> Range<usize> {
        let start = 4 * self.tokens;
        start..start + self.wanted
    }

    fn draws(&self) -> Range<usize> {
        let start = self.wanted().end;
        start..start + 3 * self.draws
    }

    fn tables(&self) -> Range<usize> {
        let start = self.draws().end;
        start..start + self.spans * self.width
    }

    /// The numbers of a step. Rows that pad it feed token 0 to the block `spare`, which no sequence has.
    fn words(&self, plan: &Plan, draws: &[(u32, f64)], spare: u32) -> Vec<u32> {
        let padded = |values: &[u32], len: usize, pad: &dyn Fn(usize) -> u32| -> Vec<u32> {
            values.iter().copied().chain((values.len()..len).map(pad)).collect()
        };
        let mut draws = draws.to_vec();
        draws.extend((draws.len()..self.draws).map(|i| (i as u32, 0.0)));
        [
            padded(&plan.tokens, self.tokens, &|_| 0),
            padded(&plan.positions, self.tokens, &|_| 0),
            padded(&plan.slots, self.tokens, &|_| spare * LANES as u32),
            padded(&plan.owners, self.tokens, &|i| i as u32),
            padded(&plan.wanted, self.wanted, &|i| i as u32),
            sample::words(&draws),
            padded(&plan.tables, self.spans * self.width, &|_| spare),
        ]
        .concat()
    }
}

/// What a step computes in.
struct Buffers<M> {
    /// The residual stream, `[tokens, hidden]`.
    x: M,
    normed: M,
    q: M,
    k: M,
    v: M,
    mixed: M,
    gate: M,
    up: M,
    /// Between the two factors of an adapter, `[tokens, rank]`.
    low: M,
    /// The rows whose logits are wanted, `[wanted, hidden]`.
    last: M,
    /// f32, `[wanted, vocab]`.
    logits: M,
    /// f32: what chunks of sequences give.
    parts: M,
    /// What the host sends.
    step: M,
    /// What it gets back.
    result: M,
}

/// How many elements each of the [`Buffers`] has, in their order.
type Sizes = [usize; 14];

fn sizes(model: &Qwen2, layout: &Layout) -> Sizes {
    let config = model.config();
    let (n, h, (q, kv), f) = (layout.tokens, config.hidden_size, config.widths(), config.intermediate_size);
    let rank = model.lora().map_or(0, |lora| lora.rank);
    [
        n * h,
        n * h,
        n * q,
        n * kv,
        n * kv,
        n * q,
        n * f,
        n * f,
        n * rank,
        layout.wanted * h,
        layout.wanted * config.vocab_size,
        decode_attention::parts_len(n, config.heads, layout.width),
        layout.tables().end,
        2 * layout.draws,
    ]
}

fn dtype_of(buffer: usize, dtype: DType) -> DType {
    match buffer {
        10 | 11 => DType::F32,
        12.. => DType::U32,
        _ => dtype,
    }
}

/// Bytes that steps of up to so many tokens, of which `rows` want logits, compute in.
#[cfg(feature = "cuda")]
pub(crate) fn bytes(model: &Qwen2, tokens: usize, rows: usize, width: usize) -> u64 {
    let of = |tokens: usize| sizes(model, &Layout { tokens, spans: rows, wanted: rows, draws: rows, width });
    // Parts of sequences are kept for few tokens only.
    let (large, small) = (of(tokens), of(tokens.min(decode_attention::MANY)));
    let each = large.iter().zip(small).map(|(a, b)| (*a).max(b)).enumerate();
    each.map(|(i, len)| (len * dtype_of(i, model.embedding.dtype()).size_in_bytes()) as u64).sum()
}

/// A model's step on a machine.
pub(crate) struct Kernels<M: Ends> {
    machine: M,
    buffers: Option<Buffers<M::Memory>>,
    sizes: Sizes,
    /// The adapters as products take them, in the type of the weights and times their scale.
    adapters: Vec<[Option<Adapter>; 7]>,
}

impl<M: Ends> Kernels<M> {
    /// # Errors
    /// When the weights are of several types, or of one that no kernel takes.
    pub fn new(machine: M, model: &Qwen2) -> Result<Self> {
        let dtype = model.embedding.dtype();
        if let Some((name, var)) = model.weights().iter().find(|(_, var)| var.dtype() != dtype) {
            let found = var.dtype();
            return Err(Error::Unsupported(format!(
                "tensor {name} is {found:?} and the embedding {dtype:?}; kernels take one type"
            )));
        }
        crate::ops::cuda::suffix(dtype)?;
        Ok(Self { machine, buffers: None, sizes: Sizes::default(), adapters: adapters(model)? })
    }

    #[cfg(feature = "cuda")]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Takes a model's current adapters; says whether there are some, whose memory is then another.
    #[cfg(feature = "cuda")]
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        self.adapters = adapters(model)?;
        Ok(model.lora().is_some())
    }

    /// Of so many bytes that steps compute in, those that have yet to be allocated.
    #[cfg(feature = "cuda")]
    pub fn missing(&self, bytes: u64) -> u64 {
        if self.buffers.is_some() { 0 } else { bytes }
    }

    /// Gives the memory back that steps compute in.
    #[cfg(feature = "cuda")]
    pub fn rest(&mut self) {
        (self.buffers, self.sizes) = (None, Sizes::default());
    }

    /// Copies the blocks that forks have asked for, list by list.
    pub fn copy(&mut self, model: &Qwen2, cache: &mut [Cached<M::Memory>], lists: &[Vec<(u32, u32)>]) -> Result<()> {
        let (width, dtype) = (model.config().widths().1, model.embedding.dtype());
        for list in lists {
            let words: Vec<u32> = list.iter().flat_map(|&(from, to)| [from, to]).collect();
            let mut pairs = self.machine.allocate(DType::U32, words.len())?;
            self.machine.upload(&words, &mut pairs)?;
            for layer in cache.iter_mut() {
                let pairs = View::whole(&pairs, DType::U32, words.len());
                decode::copy_blocks(&self.machine, pairs, layer, (width, dtype))?;
            }
        }
        Ok(())
    }

    /// Sends a step to the device, with room to compute it; says whether memory that an earlier step used is elsewhere now.
    pub fn send(
        &mut self,
        model: &Qwen2,
        plan: &Plan,
        layout: &Layout,
        draws: &[(u32, f64)],
        spare: u32,
    ) -> Result<bool> {
        let need = sizes(model, layout);
        let moved = self.buffers.is_none() || need.iter().zip(&self.sizes).any(|(need, there)| need > there);
        if moved {
            // Freed before its successor is made.
            self.buffers = None;
            self.sizes = std::array::from_fn(|i| need[i].max(self.sizes[i]));
            let dtype = model.embedding.dtype();
            let machine = &self.machine;
            let mut each = self.sizes.iter().enumerate();
            let mut make = || match each.next() {
                Some((i, &len)) => machine.allocate(dtype_of(i, dtype), len.max(1)),
                None => machine.allocate(dtype, 1),
            };
            self.buffers = Some(Buffers {
                x: make()?,
                normed: make()?,
                q: make()?,
                k: make()?,
                v: make()?,
                mixed: make()?,
                gate: make()?,
                up: make()?,
                low: make()?,
                last: make()?,
                logits: make()?,
                parts: make()?,
                step: make()?,
                result: make()?,
            });
        }
        let buffers = self.buffers.as_mut().ok_or_else(|| Error::Unsupported("a step without memory".into()))?;
        self.machine.upload(&layout.words(plan, draws, spare), &mut buffers.step)?;
        Ok(moved)
    }

    /// Launches everything of the step that was sent: the forward pass, and the draws.
    pub fn launch(
        &mut self,
        model: &Qwen2,
        cache: &mut [Cached<M::Memory>],
        layout: &Layout,
        from: &Distribution,
    ) -> Result<()> {
        let buffers = self.buffers.as_mut().ok_or_else(|| Error::Unsupported("a step without memory".into()))?;
        let pass = Pass { machine: &self.machine, model, layout, dtype: model.embedding.dtype() };
        pass.run(buffers, cache, &self.adapters, from)
    }

    /// The tokens that were drawn, with their log-probs: the first `draws` of them.
    pub fn receive(&self, layout: &Layout, draws: usize) -> Result<Vec<(u32, f32)>> {
        let Some(buffers) = self.buffers.as_ref().filter(|_| layout.draws > 0) else { return Ok(Vec::new()) };
        let words = self.machine.download(&buffers.result, 2 * layout.draws)?;
        let (tokens, bits) = words.split_at(layout.draws);
        Ok(tokens.iter().copied().zip(bits.iter().map(|&bits| f32::from_bits(bits))).take(draws).collect())
    }
}

/// The draws of a step in the order of its rows: the row of logits of each, and where it inverts the distribution.
pub(crate) fn draws(plan: &Plan, draws: &Draws) -> Vec<(u32, f64)> {
    let rows = plan.logits_of.iter().zip(draws.at).filter_map(|(row, at)| Some(((*row)? as u32, at)));
    rows.flat_map(|(row, at)| at.iter().map(move |&u| (row, u))).collect()
}

fn adapters(model: &Qwen2) -> Result<Vec<[Option<Adapter>; 7]>> {
    let dtype = model.embedding.dtype();
    let adapted = |projection: &Projection| -> Result<Option<Adapter>> {
        let Some(adapter) = &projection.adapter else { return Ok(None) };
        let a = adapter.a.detach().to_dtype(dtype)?;
        Ok(Some(Adapter { a, b: (adapter.b.detach() * adapter.scale)?.to_dtype(dtype)?, scale: 1.0 }))
    };
    let of = |l: &Layer| -> Result<[Option<Adapter>; 7]> {
        let [q, k, v, o] = [&l.q, &l.k, &l.v, &l.o].map(adapted);
        let [gate, up, down] = [&l.gate, &l.up, &l.down].map(adapted);
        Ok([q?, k?, v?, o?, gate?, up?, down?])
    };
    model.layers.iter().map(of).collect()
}

/// One forward pass.
struct Pass<'a, M: Ends> {
    machine: &'a M,
    model: &'a Qwen2,
    layout: &'a Layout,
    dtype: DType,
}

impl<M: Ends> Pass<'_, M> {
    fn run(
        &self,
        buffers: &mut Buffers<M::Memory>,
        cache: &mut [Cached<M::Memory>],
        adapters: &[[Option<Adapter>; 7]],
        from: &Distribution,
    ) -> Result<()> {
        let (machine, layout) = (self.machine, self.layout);
        let &Config { hidden_size: h, vocab_size, .. } = self.model.config();
        let table = machine.hold(&self.model.embedding)?;
        let tokens = numbers(&buffers.step, layout, layout.by_token(0));
        decode::rows(machine, machine.view(&table)?, tokens, &mut buffers.x, h)?;
        for ((layer, adapters), cache) in self.model.layers.iter().zip(adapters).zip(cache.iter_mut()) {
            self.block(layer, adapters, cache, buffers)?;
        }
        if layout.wanted == 0 {
            return Ok(());
        }
        let Buffers { x, normed, last, logits, step, result, .. } = buffers;
        let stream = View::whole(x, self.dtype, layout.tokens * h);
        decode::rows(machine, stream, numbers(step, layout, layout.wanted()), last, h)?;
        let last = View::whole(last, self.dtype, layout.wanted * h);
        self.norm(last, &self.model.norm, normed)?;
        let head = machine.hold(self.model.head_weight())?;
        let product = Product {
            a: View::whole(normed, self.dtype, layout.wanted * h),
            a_transposed: false,
            b: machine.view(&head)?,
            b_transposed: true,
            m: layout.wanted,
            n: vocab_size,
            k: h,
        };
        machine.product(&product, Target { memory: &mut *logits, offset: 0, dtype: DType::F32, add: false })?;
        if layout.draws > 0 {
            let logits = View::whole(logits, DType::F32, layout.wanted * vocab_size);
            sample::draw(machine, from, logits, numbers(step, layout, layout.draws()), result, vocab_size)?;
        }
        Ok(())
    }

    /// One decoder block over the residual stream.
    fn block(
        &self,
        layer: &Layer,
        adapters: &[Option<Adapter>; 7],
        cache: &mut Cached<M::Memory>,
        buffers: &mut Buffers<M::Memory>,
    ) -> Result<()> {
        let (machine, layout, dtype) = (self.machine, self.layout, self.dtype);
        let config = self.model.config();
        let (n, h, (q_width, kv_width)) = (layout.tokens, config.hidden_size, config.widths());
        let inner = config.intermediate_size;
        let [q_adapter, k_adapter, v_adapter, o_adapter, gate_adapter, up_adapter, down_adapter] = adapters;
        let Buffers { x, normed, q, k, v, mixed, gate, up, low, parts, step, .. } = buffers;
        self.norm(View::whole(x, dtype, n * h), &layer.input_norm, normed)?;
        let input = View::whole(normed, dtype, n * h);
        self.project(input, &layer.q, q_adapter, low, q, false)?;
        self.project(input, &layer.k, k_adapter, low, k, false)?;
        self.project(input, &layer.v, v_adapter, low, v, false)?;
        self.place(layer, q, [View::whole(k, dtype, n * kv_width), View::whole(v, dtype, n * kv_width)], cache, step)?;
        let reads = Reads {
            heads: config.heads,
            q: View::whole(q, dtype, n * q_width),
            keys: View::whole(&cache.keys, dtype, 0),
            values: View::whole(&cache.values, dtype, 0),
            positions: numbers(step, layout, layout.by_token(1)),
            owners: numbers(step, layout, layout.by_token(3)),
            tables: numbers(step, layout, layout.tables()),
            width: layout.width,
        };
        decode_attention::attend(machine, &reads, mixed, parts)?;
        self.project(View::whole(mixed, dtype, n * q_width), &layer.o, o_adapter, low, x, true)?;
        if let Some(bias) = &layer.o.bias {
            let bias = machine.hold(bias)?;
            decode::add_bias(machine, x, machine.view(&bias)?, n)?;
        }
        self.norm(View::whole(x, dtype, n * h), &layer.post_norm, normed)?;
        let input = View::whole(normed, dtype, n * h);
        self.project(input, &layer.gate, gate_adapter, low, gate, false)?;
        self.project(input, &layer.up, up_adapter, low, up, false)?;
        decode::gate(machine, gate, View::whole(up, dtype, n * inner))?;
        self.project(View::whole(gate, dtype, n * inner), &layer.down, down_adapter, low, x, true)
    }

    /// The norm of each row, with the kernel of training.
    fn norm(&self, x: View<'_, M::Memory>, weight: &Tensor, y: &mut M::Memory) -> Result<()> {
        let weight = self.machine.hold(weight)?;
        let eps = self.model.config().rms_norm_eps as f32;
        Ok(rms_norm::forward_into(self.machine, x, self.machine.view(&weight)?, eps, y)?)
    }

    /// `y = x w^T`, or `y += x w^T`, and what an adapter adds; the bias is left to the caller.
    fn project(
        &self,
        x: View<'_, M::Memory>,
        projection: &Projection,
        adapter: &Option<Adapter>,
        low: &mut M::Memory,
        y: &mut M::Memory,
        add: bool,
    ) -> Result<()> {
        self.product(x, &projection.weight, y, add)?;
        if let Some(Adapter { a, b, .. }) = adapter {
            self.product(x, a, low, false)?;
            let rank = a.dim(0)?;
            self.product(View::whole(low, self.dtype, self.layout.tokens * rank), b, y, true)?;
        }
        Ok(())
    }

    fn product(&self, x: View<'_, M::Memory>, weight: &Tensor, y: &mut M::Memory, add: bool) -> Result<()> {
        let (n, k) = weight.dims2()?;
        let weight = self.machine.hold(weight)?;
        let b = self.machine.view(&weight)?;
        let product = Product { a: x, a_transposed: false, b, b_transposed: true, m: self.layout.tokens, n, k };
        Ok(self.machine.product(&product, Target { memory: y, offset: 0, dtype: self.dtype, add })?)
    }

    fn place(
        &self,
        layer: &Layer,
        q: &mut M::Memory,
        kv: [View<'_, M::Memory>; 2],
        cache: &mut Cached<M::Memory>,
        step: &M::Memory,
    ) -> Result<()> {
        let (machine, model) = (self.machine, self.model);
        let [q_bias, k_bias, v_bias] = [&layer.q, &layer.k, &layer.v].map(|p| p.bias.as_ref());
        let biases = [held(machine, q_bias)?, held(machine, k_bias)?, held(machine, v_bias)?];
        let norms = layer.qk_norm.as_ref();
        let norms = [held(machine, norms.map(|(q, _)| q))?, held(machine, norms.map(|(_, k)| k))?];
        let (cos, sin) = (machine.resident_f32(&model.rope.cos)?, machine.resident_f32(&model.rope.sin)?);
        let of = Place {
            heads: model.config().heads,
            eps: model.config().rms_norm_eps as f32,
            biases: views(machine, &biases)?,
            norms: views(machine, &norms)?,
            rope: [
                View::whole(cos.as_ref(), DType::F32, model.rope.cos.len()),
                View::whole(sin.as_ref(), DType::F32, model.rope.sin.len()),
            ],
            positions: numbers(step, self.layout, self.layout.by_token(1)),
            slots: numbers(step, self.layout, self.layout.by_token(2)),
        };
        Ok(decode::place(machine, &of, q, kv, cache)?)
    }
}

/// A part of the step's numbers.
fn numbers<'a, M>(step: &'a M, layout: &Layout, range: Range<usize>) -> View<'a, M> {
    let whole = View::whole(step, DType::U32, layout.tables().end);
    View { len: range.len(), ..whole.from(range.start) }
}

fn held<'a, M: Ends>(machine: &M, tensor: Option<&'a Tensor>) -> Result<Option<M::Held<'a>>> {
    tensor.map(|tensor| machine.hold(tensor)).transpose()
}

fn views<'a, M: Ends, const N: usize>(
    machine: &M,
    held: &'a [Option<M::Held<'_>>; N],
) -> Result<[Option<View<'a, M::Memory>>; N]> {
    let mut views = [None; N];
    for (view, held) in views.iter_mut().zip(held) {
        *view = held.as_ref().map(|held| machine.view(held)).transpose()?;
    }
    Ok(views)
}
