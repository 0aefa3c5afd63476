/* A few tokens of one or more caches through all layers of a decoder, and products of packed matrices.

   Every token is computed in one order, whichever others share the call: tokens one after the other and
   together give the same logits to the last bit. */
#define _GNU_SOURCE
#include "attention.h"
#include "pack.h"
#include "packed.h"
#include "team.h"
#include "vectors.h"

enum { SILU = 0, GELU_TANH = 1, ROTARIES = 4, CHUNK = 4, ABI = 3 };

typedef struct {
    Matrix qkv, o, gate, up, down;
    const float *attn_norm, *mlp_norm;           /* [hidden] */
    const float *post_attn_norm, *post_mlp_norm; /* [hidden] or NULL */
    const float *qkv_bias;                       /* [(heads + 2 kv_heads) dim] or NULL */
    const float *qk_norm;                        /* [heads + kv_heads, dim] or NULL */
    int32_t is_local, rotary;
} Layer;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, dim, inner, vocab, activation, window, is_bf16;
    float eps, scale;
    const float *norm;
    const Layer *layer;
    Matrix head;
} Model;

/* Where a row stands: its cache, the slot that it is written to, and how it reads memories. Rows of one cache
   have slots that follow each other. */
typedef struct {
    int32_t slot, position, memory_start, memory_end, capacity;
    float temperature, mass_scale;
    void *k, *v; /* [layers, kv_heads, capacity, dim] */
} Place;

typedef struct {
    int32_t rows, threads, logit_rows;
    const float *rotary[ROTARIES]; /* [rows, dim]: cosine and sine of each pair */
    const float *x;                /* [rows, hidden]: the embeddings */
    const Place *place;            /* of each row */
    float *logits;                 /* [logit_rows, vocab], of the last rows */
    int32_t layers;                /* to run; of the last one its queries only, where they are asked for */
    float *const *queries;         /* NULL, or by layer: NULL or [rows, heads dim], after the rotation */
    float *const *hidden;          /* NULL, or by layer: NULL or [rows, hidden], what goes into it */
} Call;

typedef struct {
    const Model *model;
    const Call *call;
    float *qkv, *attended, *added, *gated; /* [rows, ...], written by all members */
    uint8_t *own;                          /* room of each member */
    size_t own_bytes, x_bytes, codes_bytes, up_bytes;
} Step;

/* RMSNorm of `x [size]` times `weight`. */
static __attribute__((noinline)) void normalize(const float *x, const float *weight, float eps, int size,
                                                float *out) {
    f8 sum = all8(0);
    int i = 0;
    for (; i + 8 <= size; i += 8) sum = fma8(load8(x + i), load8(x + i), sum);
    float total = sum8(sum);
    for (; i < size; i++) total += x[i] * x[i];
    float inverse = 1 / sqrtf(total / (float)size + eps);
    for (i = 0; i + 8 <= size; i += 8) store8(out + i, load8(x + i) * all8(inverse) * load8(weight + i));
    for (; i < size; i++) out[i] = x[i] * inverse * weight[i];
}

/* `gate` becomes activation(gate) * up, both `[size]`, with room for eight at a time. */
static __attribute__((noinline)) void activate(int kind, const float *up, int size, float *gate) {
    for (int i = 0; i < size; i += 8) {
        float g[8] = {0}, u[8] = {0};
        int count = size - i < 8 ? size - i : 8;
        memcpy(g, gate + i, (size_t)count * sizeof(float));
        memcpy(u, up + i, (size_t)count * sizeof(float));
        f8 x = load8(g), y = x;
        if (kind == GELU_TANH) /* x / 2 (1 + tanh y') is x / (1 + e^(-2 y')) */
            y = (x + x * x * x * all8(0.044715f)) * all8(1.5957691216f);
        f8 result = x / (all8(1) + exp8(-y)) * load8(u);
        memcpy(gate + i, &result, (size_t)count * sizeof(float));
    }
}

static __attribute__((noinline)) void rotate(float *x, const float *turn, int dim) {
    for (int i = 0; i < dim; i += 2) {
        float a = x[i], b = x[i + 1];
        x[i] = a * turn[i] - b * turn[i + 1];
        x[i + 1] = a * turn[i + 1] + b * turn[i];
    }
}

static void quantize_rows(const float *x, int rows, int in, uint8_t *codes, Row *row) {
    int groups = groups_of(in);
    for (int r = 0; r < rows; r++) {
        row[r] = (Row)(codes + r * row_bytes(groups));
        quantize_row(x + (size_t)r * in, in, row[r]);
    }
}

static void product(Team *team, int phase, const Matrix *m, const Row *row, int rows, float *y, int stride) {
    int blocks = blocks_of(m->out), chunk = CHUNK;
    for (int b; (b = take(team, phase, chunk)) < blocks;)
        multiply(m, row, rows, b, b + chunk < blocks ? b + chunk : blocks, y, (size_t)stride);
}

static Sight sight_of(const Model *model, const Place *place, const Layer *layer) {
    Sight sight = {.first = 0,
                   .memory_start = place->memory_start,
                   .memory_end = place->memory_end,
                   .after = place->memory_end,
                   .end = place->slot + 1,
                   .temperature = place->temperature,
                   .mass_scale = place->mass_scale};
    if (layer->is_local && model->window && place->position >= model->window) {
        int first = place->position + 1 - model->window, after = place->slot + 1 - model->window;
        sight.first = first < sight.memory_start ? first : sight.memory_start;
        sight.after = after > sight.memory_end ? after : sight.memory_end;
    }
    return sight;
}

/* Head `h` of the queries and keys of a row: bias, norm, rotation. */
static void prepare_head(const Model *model, const Call *call, const Layer *layer, int row, int h, float *x) {
    int dim = model->dim;
    if (layer->qkv_bias)
        for (int d = 0; d < dim; d++) x[d] += layer->qkv_bias[h * dim + d];
    if (layer->qk_norm) normalize(x, layer->qk_norm + (size_t)h * dim, model->eps, dim, x);
    rotate(x, call->rotary[layer->rotary] + (size_t)row * dim, dim);
}

static void keep_kv(const Model *model, const Call *call, int index, int row, int h, float *qkv) {
    const Layer *layer = &model->layer[index];
    const Place *place = &call->place[row];
    int dim = model->dim;
    float *key = qkv + (size_t)(model->heads + h) * dim, *value = key + (size_t)model->kv_heads * dim;
    size_t at = (((size_t)index * model->kv_heads + h) * place->capacity + place->slot) * dim;
    prepare_head(model, call, layer, row, model->heads + h, key);
    if (layer->qkv_bias)
        for (int d = 0; d < dim; d++)
            value[d] += layer->qkv_bias[(size_t)(model->heads + model->kv_heads + h) * dim + d];
    for (int d = 0; d < dim; d++) {
        store_kv(place->k, at + d, key[d], model->is_bf16);
        store_kv(place->v, at + d, value[d], model->is_bf16);
    }
}

/* Whether nothing but the queries of this layer is wanted. */
INLINE int is_last_look(const Model *model, const Call *call, int index) {
    return index == call->layers - 1 && call->layers < model->layers;
}

static void attend_head(const Model *model, const Call *call, int index, int row, int h, float *q, float *scores,
                        float *out) {
    const Layer *layer = &model->layer[index];
    const Place *place = &call->place[row];
    int dim = model->dim, kv_head = h / (model->heads / model->kv_heads);
    size_t size = model->is_bf16 ? 2 : 4;
    size_t at = ((size_t)index * model->kv_heads + kv_head) * place->capacity * dim * size;
    Head head = {(const char *)place->k + at, (const char *)place->v + at, dim, model->is_bf16};
    prepare_head(model, call, layer, row, h, q);
    if (call->queries && call->queries[index])
        memcpy(call->queries[index] + ((size_t)row * model->heads + h) * dim, q, (size_t)dim * sizeof(float));
    if (is_last_look(model, call, index)) return;
    for (int d = 0; d < dim; d++) q[d] *= model->scale;
    attend(q, head, sight_of(model, place, layer), scores, out);
}

static void add_to(float *x, float *added, const float *post_norm, const Model *model, int rows) {
    int hidden = model->hidden;
    for (int r = 0; r < rows; r++) {
        const float *from = added + (size_t)r * hidden;
        float normed[hidden];
        if (post_norm) {
            normalize(from, post_norm, model->eps, hidden, normed);
            from = normed;
        }
        for (int i = 0; i < hidden; i++) x[(size_t)r * hidden + i] += from[i];
    }
}

static void run_layers(Team *team, int member, void *given) {
    const Step *step = given;
    const Model *model = step->model;
    const Call *call = step->call;
    int rows = call->rows, hidden = model->hidden, dim = model->dim, inner = model->inner;
    int heads = model->heads, kv_heads = model->kv_heads, width = (heads + 2 * kv_heads) * dim, phase = 0;
    uint8_t *room = step->own + (size_t)member * step->own_bytes;
    float *x = (float *)room, *normed = (float *)(room + step->x_bytes); /* [rows, hidden] each */
    uint8_t *codes = room + 2 * step->x_bytes;
    float *up = (float *)(codes + step->codes_bytes); /* [rows, 8 CHUNK] */
    float *scores = (float *)((uint8_t *)up + step->up_bytes);
    Row row[rows];
    memcpy(x, call->x, (size_t)rows * hidden * sizeof(float)); /* each member keeps the residual itself */
    for (int index = 0; index < call->layers; index++) {
        const Layer *layer = &model->layer[index];
        int is_last = is_last_look(model, call, index);
        if (member == 0 && call->hidden && call->hidden[index])
            memcpy(call->hidden[index], x, (size_t)rows * hidden * sizeof(float));
        if (is_last && !(call->queries && call->queries[index])) return;
        for (int r = 0; r < rows; r++)
            normalize(x + (size_t)r * hidden, layer->attn_norm, model->eps, hidden, normed + (size_t)r * hidden);
        quantize_rows(normed, rows, hidden, codes, row);
        product(team, phase++, &layer->qkv, row, rows, step->qkv, width);
        meet(team);
        for (int piece; (piece = take(team, phase, 1)) < rows * kv_heads;)
            keep_kv(model, call, index, piece / kv_heads, piece % kv_heads,
                    step->qkv + (size_t)(piece / kv_heads) * width);
        phase++;
        meet(team);
        for (int piece; (piece = take(team, phase, 1)) < rows * heads;) {
            int r = piece / heads, h = piece % heads;
            attend_head(model, call, index, r, h, step->qkv + (size_t)r * width + (size_t)h * dim, scores,
                        step->attended + ((size_t)r * heads + h) * dim);
        }
        phase++;
        meet(team);
        if (is_last) return;
        quantize_rows(step->attended, rows, heads * dim, codes, row);
        product(team, phase++, &layer->o, row, rows, step->added, hidden);
        meet(team);
        add_to(x, step->added, layer->post_attn_norm, model, rows);
        for (int r = 0; r < rows; r++)
            normalize(x + (size_t)r * hidden, layer->mlp_norm, model->eps, hidden, normed + (size_t)r * hidden);
        quantize_rows(normed, rows, hidden, codes, row);
        int blocks = blocks_of(inner);
        for (int b; (b = take(team, phase, CHUNK)) < blocks;) {
            int last = b + CHUNK < blocks ? b + CHUNK : blocks, first = b * LANES;
            int count = (last * LANES < inner ? last * LANES : inner) - first;
            multiply(&layer->gate, row, rows, b, last, step->gated, (size_t)inner);
            multiply(&layer->up, row, rows, b, last, up - first, (size_t)(CHUNK * LANES));
            for (int r = 0; r < rows; r++)
                activate(model->activation, up + (size_t)r * CHUNK * LANES, count,
                         step->gated + (size_t)r * inner + first);
        }
        phase++;
        meet(team);
        quantize_rows(step->gated, rows, inner, codes, row);
        product(team, phase++, &layer->down, row, rows, step->added, hidden);
        meet(team);
        add_to(x, step->added, layer->post_mlp_norm, model, rows);
    }
    int skipped = rows - call->logit_rows;
    if (call->logit_rows < 1) return;
    for (int r = skipped; r < rows; r++)
        normalize(x + (size_t)r * hidden, model->norm, model->eps, hidden, normed + (size_t)r * hidden);
    quantize_rows(normed + (size_t)skipped * hidden, call->logit_rows, hidden, codes, row);
    product(team, phase, &model->head, row, call->logit_rows, call->logits, model->vocab);
}

static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Appends the KV of `rows` tokens; 0, or -1 when memory is short. */
int mnemos_step(const Model *model, const Call *call) {
    size_t rows = (size_t)call->rows, dim = (size_t)model->dim, hidden = (size_t)model->hidden;
    size_t inner = (size_t)model->inner, heads = (size_t)model->heads, all = heads + 2 * (size_t)model->kv_heads;
    size_t widest = hidden > inner ? hidden : inner;
    widest = heads * dim > widest ? heads * dim : widest;
    int threads = call->threads < 1 ? 1 : call->threads > MOST_THREADS ? MOST_THREADS : call->threads;
    Step step = {.model = model, .call = call};
    step.x_bytes = rounded(rows * hidden * sizeof(float));
    step.codes_bytes = rounded(rows * row_bytes(groups_of((int)widest)));
    step.up_bytes = rounded(rows * CHUNK * LANES * sizeof(float));
    int32_t last = 0;
    for (size_t r = 0; r < rows; r++) last = call->place[r].slot > last ? call->place[r].slot : last;
    size_t scores_bytes = rounded(((size_t)last + 9) * sizeof(float));
    step.own_bytes = 2 * step.x_bytes + step.codes_bytes + step.up_bytes + scores_bytes;
    size_t shared[4] = {rounded(rows * all * dim * 4), rounded(rows * heads * dim * 4), rounded(rows * hidden * 4),
                        rounded(rows * inner * 4)};
    size_t total = shared[0] + shared[1] + shared[2] + shared[3] + (size_t)threads * step.own_bytes;
    void *room;
    if (posix_memalign(&room, 64, total)) return -1;
    step.qkv = room;
    step.attended = (float *)((uint8_t *)step.qkv + shared[0]);
    step.added = (float *)((uint8_t *)step.attended + shared[1]);
    step.gated = (float *)((uint8_t *)step.added + shared[2]);
    step.own = (uint8_t *)step.gated + shared[3];
    int failed = with_team(threads, 6 * model->layers + 1, run_layers, &step);
    free(room);
    return failed;
}

typedef struct {
    const Matrix *matrix;
    const float *x;
    float *y;
    uint8_t *codes;
    Row *row;
    int rows;
} Product;

static void run_product(Team *team, int member, void *given) {
    Product *p = given;
    (void)member;
    int in = p->matrix->in, out = p->matrix->out, groups = p->matrix->groups;
    for (int r; (r = take(team, 0, ROWS)) < p->rows;)
        for (int i = r; i < r + ROWS && i < p->rows; i++) {
            p->row[i] = (Row)(p->codes + (size_t)i * row_bytes(groups));
            quantize_row(p->x + (size_t)i * in, in, p->row[i]);
        }
    meet(team);
    product(team, 1, p->matrix, p->row, p->rows, p->y, out);
}

/* `y [rows, out] = x [rows, in] W^T`; 0, or -1 when memory is short. */
int mnemos_product(const Matrix *matrix, const float *x, int rows, float *y, int threads) {
    Product p = {.matrix = matrix, .x = x, .y = y, .rows = rows};
    void *room = NULL;
    p.row = malloc((size_t)rows * sizeof(Row));
    int failed = !p.row || posix_memalign(&room, 64, (size_t)rows * row_bytes(matrix->groups));
    if (!failed) {
        p.codes = room;
        failed = with_team(threads, 2, run_product, &p);
    }
    free(room);
    free(p.row);
    return failed ? -1 : 0;
}

size_t mnemos_packed_bytes(int out, int in, int bits) {
    return (size_t)blocks_of(out) * groups_of(in) * (bits == 4 ? BYTES4 : BYTES8);
}

typedef struct {
    const float *weight;
    uint8_t *to;
    int out, in, bits;
    float tolerance;
    _Atomic float worst;
} Packing;

static void run_packing(Team *team, int member, void *given) {
    Packing *p = given;
    (void)member;
    size_t bytes = (size_t)groups_of(p->in) * (p->bits == 4 ? BYTES4 : BYTES8);
    for (int b; (b = take(team, 0, 1)) < blocks_of(p->out);) {
        float worst = atomic_load(&p->worst);
        if (p->tolerance > 0 && worst > p->tolerance) return;
        float found = pack_block(p->weight, p->out, p->in, p->bits, b, p->tolerance, p->to + (size_t)b * bytes);
        while (found > worst && !atomic_compare_exchange_weak(&p->worst, &worst, found)) {
        }
    }
}

/* Packs `weight [out, in]`; the largest error in steps of a group. With a `tolerance` above 0 it stops at the
   first greater error: the result is of no use then. Below 0 when memory is short. */
float mnemos_pack(const float *weight, int out, int in, int bits, float tolerance, uint8_t *to, int threads) {
    Packing p = {.weight = weight, .to = to, .out = out, .in = in, .bits = bits, .tolerance = tolerance};
    if (with_team(threads, 1, run_packing, &p)) return -1;
    return atomic_load(&p.worst);
}

int mnemos_abi(void) { return ABI; }

/* Of the structures that a caller fills, in bytes. */
void mnemos_sizes(size_t sizes[5]) {
    sizes[0] = sizeof(Matrix);
    sizes[1] = sizeof(Layer);
    sizes[2] = sizeof(Model);
    sizes[3] = sizeof(Call);
    sizes[4] = sizeof(Place);
}
