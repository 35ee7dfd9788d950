"""What is read from a compiled program, and from a trace of it."""

import jax
import jax.numpy as jnp
import pytest

from vit_ssl_jax.benchmark import hlo, inspection, measuring, profiling

PROGRAM = """HloModule jit_step

FileNames
1 "/a/vit_ssl_jax/augment/color.py"
2 "/a/vit_ssl_jax/pretrain.py"

FunctionNames
1 "jitter"
2 "train_step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%fused (p.1: f32[9,64], p.2: s32[]) -> f32[1,64] {
  %p.1 = f32[9,64]{1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  ROOT %ds = f32[1,64]{1,0} dynamic-slice(%p.1, %p.2), dynamic_slice_sizes={1,64}
}

%body (x: (s32[], f32[9,64])) -> (s32[], f32[9,64]) {
  %x = (s32[], f32[9,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %all = f32[9,64]{1,0} get-tuple-element(%x), index=1
  %row = f32[1,64]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mul" stack_frame_id=2}
  %sum = f32[1,64]{1,0} all-reduce(%row), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[9,64]{1,0}) tuple(%i, %all)
}

ENTRY %main (a: bf16[4,4], b: f32[9,64]) -> f32[4,4] {
  %a = bf16[4,4]{1,0} parameter(0)
  %b = f32[9,64]{1,0} parameter(1)
  %c = f32[4,4]{1,0} convert(%a)
  %t.1 = (s32[], f32[9,64]{1,0}) tuple(%b)
  %w = (s32[], f32[9,64]{1,0}) while(%t.1), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"9"}}
  %s = f32[2,4]{1,0} reduce-scatter(%c), replica_groups=[1,2]<=[2], dimensions={0}
  %g = (f32[2,4]{1,0}, f32[4,4]{1,0}) all-gather-start(%s), replica_groups=[1,2]<=[2]
  ROOT %d = f32[4,4]{1,0} all-gather-done(%g)
}
"""  # noqa: E501
TRACE = """planes {
  name: "/device:%s:0"
  lines {
    name: "%s" timestamp_ns: 1000
    events { metadata_id: 1 duration_ps: 3000000 %s }
    events { metadata_id: 2 offset_ps: 6000000 duration_ps: 1000000 }
    events { metadata_id: 3 duration_ps: 7000000 }
  }
  lines {
    name: "Steps" timestamp_ns: 1000
    events { metadata_id: 1 duration_ps: 9000000 %s }
  }
  event_metadata { key: 1 value { id: 1 name: "%s" } }
  event_metadata { key: 2 value { id: 2 name: "memset" } }
  event_metadata { key: 3 value { id: 3 name: "%%w = (s32[]) while()" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}"""


def test_reading_a_program():
  program = hlo.Program(PROGRAM)
  found = inspection.figures(program)
  assert found["collective_bytes"] == {
    "all-reduce": 9 * 64 * 4,  # the loop's turns
    "reduce-scatter": 64,
    "all-gather": 64,
  }
  assert found["collectives"][0] == {
    "kind": "all-reduce",
    "bytes": 9 * 64 * 4,
    "times": 9,
    "part": "not attributed",
    "from": "",
  }
  assert found["upcasts"] == found["upcasts_outside_fusions"] == 1
  assert found["fusions"] == 9
  row = program.instructions["row"]
  assert inspection.traffic(program, row) == 2 * 64 * 4 + 4  # and the index
  files = [x.rpartition("/")[2] for x in row.frames]
  assert files == ["color.py:jitter", "pretrain.py:train_step"]


@pytest.mark.parametrize("kind", ["GPU", "TPU"])
def test_reading_an_accelerators_trace(kind):
  """As XLA writes it: kernels in streams, or operations by their line."""
  if kind == "GPU":
    row = 'stats { metadata_id: 1 str_value: "row" }'
    text = TRACE % (kind, "Stream #7(Compute)", row, row, "loop_fusion_kernel")
  else:
    name = "%row = f32[1,64]{1,0:T(1,128)} fusion(f32[9,64] %all)"
    text = TRACE % (kind, "XLA Ops", "", "", name)
  program = hlo.Program(PROGRAM)
  data = jax.profiler.ProfileData.from_text_proto(text)
  events = profiling.events(data, program)
  found = profiling.summary(program, events, steps=1)
  assert found["parts"]["augmentation"]["share"] == pytest.approx(75)
  assert found["unattributed_share"] == pytest.approx(25)
  assert found["step_seconds"] == pytest.approx(7e-6)
  assert found["operation_seconds"] == pytest.approx(4e-6)
  assert found["idle_share"] == pytest.approx(100 * 3 / 7)


def test_profile_names_the_heavy_operation():
  """A product in a loop beside little else, under a name of its own."""

  @jax.jit
  def step(state, batch):
    def turn(x, _):
      with jax.named_scope("mlp"):
        x = x @ x / 600
      return x, None

    state = jax.lax.scan(turn, state, length=5)[0]
    with jax.named_scope("norm"):
      return state + batch, {}

  arguments = jnp.ones((600, 600)), jnp.ones((600, 600))
  lowered = step.lower(*arguments)
  timed = measuring.Timed(lowered, lowered.compile(), *arguments, 0.0)
  found = profiling.profile(timed)
  assert next(iter(found["parts"])) == "MLP"
  assert found["parts"]["MLP"]["share"] > 60
  for table in ("parts", "kinds"):
    shares = found[table].values()
    shares = [x["share"] if table == "parts" else x for x in shares]
    assert sum(shares) == pytest.approx(100)
  first = found["operations"][0]
  assert first["kind"] == "matrix product"
  assert first["times"] == 5
  assert found["operation_seconds"] > 0
  assert 0 <= found["idle_share"] < 100
