class TemporalWorldModel: pass
class WorldModelConfig: pass
