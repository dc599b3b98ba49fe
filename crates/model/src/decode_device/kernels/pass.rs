//! One forward pass, kernel by kernel.

use super::buffers::Buffers;
use super::{Ends, Layout};
use crate::block::{Layer, Projection};
use crate::config::Config;
use crate::error::Result;
use crate::lora::Adapter;
use crate::ops::cuda::decode::{self, Cached, Place};
use crate::ops::cuda::decode_attention::{self, Reads};
use crate::ops::cuda::{Product, Target, View, rms_norm, sample};
use crate::ops::sample::Distribution;
use crate::qwen2::Qwen2;
use candle_core::{DType, Tensor};
use std::ops::Range;

/// One forward pass.
pub(super) struct Pass<'a, M: Ends> {
    pub machine: &'a M,
    pub model: &'a Qwen2,
    pub layout: &'a Layout,
    pub dtype: DType,
}

impl<M: Ends> Pass<'_, M> {
    pub fn run(
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
